//! What became of each item of a map, in the items' order, from the log: which line speaks of which item is found out first, so that no more than one line
//! is in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use common::identity::MinionName;
use common::job::map::MapFold;
use common::job::{Event, HostState, JobHeader, LogLine};
use common::outcome::Verdict;
use common::seal;

use crate::jobs::{Job, JobError};

/// The longest line that is read: as in the log's own reader.
const LINE_MAX_BYTES: u64 = 256 << 20;
/// No line.
const NONE: u64 = u64::MAX;

/// How an item stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ItemStatus {
    pub(crate) index: u64,
    /// Who had it last; none if nobody had.
    pub(crate) host: Option<MinionName>,
    pub(crate) state: HostState,
    /// How it ended.
    pub(crate) verdict: Option<Verdict>,
}

/// The log, and where in it the end of each item stands.
pub(crate) struct Results {
    file: BufReader<File>,
    lines: Vec<u64>,
    fold: MapFold,
    /// The line that was read last.
    last: Option<(u64, Event)>,
}

impl Job {
    /// What became of each item of a map; none if the job is no map.
    pub(crate) fn results(&self, header: &JobHeader) -> Result<Option<Results>, JobError> {
        let Some(fold) = MapFold::of(header, self.id.made_at()) else { return Ok(None) };
        let open = || File::open(self.fleet.home().job_log(&self.id)).and_then(|file| Results::read(file, fold));
        open().map(Some).map_err(|source| JobError::Damaged { job: self.id.clone(), reason: source.to_string() })
    }
}

impl Results {
    fn read(file: File, mut fold: MapFold) -> io::Result<Self> {
        let (mut file, mut lines, mut offset) = (BufReader::new(file), Vec::new(), 0_u64);
        loop {
            let line = line_at(&mut file)?;
            if line.last() != Some(&b'\n') {
                return Ok(Self { file, lines, fold, last: None });
            }
            match seal::open::<LogLine>(&line) {
                Ok(line) => note(&mut fold, &mut lines, offset, &line),
                Err(_) if line.trim_ascii().is_empty() => {}
                Err(_) => fold.miss(),
            }
            offset += line.len() as u64;
        }
    }

    /// The item; none behind the last.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn item(&mut self, index: u64) -> io::Result<Option<ItemStatus>> {
        let Some((state, host)) = self.fold.item(index) else { return Ok(None) };
        let host = host.cloned();
        let at = usize::try_from(index).ok().and_then(|index| self.lines.get(index)).copied().unwrap_or(NONE);
        let verdict = if at == NONE { None } else { self.verdict(at, index)? };
        Ok(Some(ItemStatus { index, host, state, verdict }))
    }

    fn verdict(&mut self, at: u64, index: u64) -> io::Result<Option<Verdict>> {
        if self.last.as_ref().is_none_or(|(read, _)| *read != at) {
            self.file.seek(SeekFrom::Start(at))?;
            let line = line_at(&mut self.file)?;
            let line: LogLine = seal::open(&line).map_err(io::Error::other)?;
            self.last = Some((at, line.event));
        }
        Ok(match self.last.as_ref().map(|(_, event)| event) {
            Some(Event::Done { ends, .. }) => {
                let place = ends.iter().position(|(other, _)| *other == index);
                place.and_then(|place| ends.get(place)).map(|(_, verdict)| verdict.clone())
            }
            Some(Event::Left { verdict, .. }) => Some(verdict.clone()),
            _ => None,
        })
    }
}

fn line_at(file: &mut BufReader<File>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    file.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// The first line that ends an item counts, as it does in the fold.
fn note(fold: &mut MapFold, lines: &mut Vec<u64>, offset: u64, line: &LogLine) {
    let mut put = |index: u64| {
        let is_open = fold.item(index).is_some_and(|(state, _)| !state.is_final());
        let Some(place) = usize::try_from(index).ok().filter(|_| is_open) else { return };
        if lines.len() <= place {
            lines.resize(place + 1, NONE);
        }
        if let Some(slot) = lines.get_mut(place) {
            *slot = offset;
        }
    };
    match &line.event {
        Event::Done { ends, .. } => ends.iter().for_each(|(index, _)| put(*index)),
        Event::Left { first, count, .. } => {
            (*first..first.saturating_add(*count)).take_while(|index| fold.item(*index).is_some()).for_each(put)
        }
        _ => {}
    }
    fold.add(line);
}
