//! For the fuzz targets alone: parsers of this crate that nothing outside of it needs, each by one thin function. It prints nothing.

use std::io::{self, Cursor};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use common::identity::MinionName;
use common::job::{JobId, JobRecord, LogLine, MinionJobId};
use common::method::Catalogue;
use common::outcome::Verdict;
use common::protocol::{JobLogs, Stream};
use http_body_util::Full;
use jsonrpsee::rpc_params;
use jsonrpsee_http_client::{HttpRequest, HttpResponse};
use serde::de::DeserializeOwned;
use tower::util::service_fn;

use crate::aggregate;
use crate::client::{self, Exchanged, Question, Sent};
use crate::config::{Config, ConfigError};
use crate::deploy;
use crate::flow;
use crate::flow::file::Texts;
use crate::flow::plan::Plan;
use crate::hosts::{Host, Roster, RosterError};
use crate::jobs::log;
use crate::jobs::logs::answer::Asked;
use crate::output;
use crate::output::logs::{LogText, Naming};
use crate::package::describe;
use crate::targets::{Expression, TargetError};

/// Longer than an answer takes that is there already.
const WITHIN: Duration = Duration::from_secs(60);

/// The roster in `text`, which is the file `path`.
///
/// # Errors
/// It cannot be understood.
pub fn roster(path: &Path, text: &str) -> Result<Roster, RosterError> {
    Roster::parse(path, text)
}

/// The limits in `text`, which is the file `path`.
///
/// # Errors
/// They cannot be understood.
pub fn config(path: &Path, text: &str) -> Result<Config, ConfigError> {
    Config::parse(path, text)
}

/// The hosts of `roster` that `expression` means. Whatever job a term names, `record` is what is known of it.
///
/// # Errors
/// It means none.
pub fn hosts<'r>(expression: &str, roster: &'r Roster, record: &JobRecord) -> Result<Vec<&'r Host>, TargetError> {
    Expression::parse(expression)?.hosts(roster, |term, _| Ok(term.members(record)))
}

/// The names as they are shown: a target expression.
#[must_use]
pub fn compressed(names: &[&MinionName]) -> String {
    aggregate::compressed(names)
}

/// What the file of a flow comes to.
pub struct FlowShape {
    /// How many nodes there are.
    pub nodes: usize,
    /// All but the last of them, in the order in which they may run.
    pub order: Vec<usize>,
    /// How many run in the end.
    pub last: usize,
    /// The first of each has to have passed before the second begins.
    pub edges: Vec<(usize, usize)>,
    /// As it is printed, as text and for Graphviz.
    pub printed: [String; 2],
    /// What is found wrong with it later: with references, types and arguments.
    pub problems: Vec<String>,
}

/// The flow in `text`.
///
/// # Errors
/// What makes that it is none, each for a person.
pub fn flow(text: &str) -> Result<FlowShape, Vec<String>> {
    let told = |problems: Vec<ConfigError>| problems.iter().map(|problem| crate::chain(problem)).collect::<Vec<_>>();
    let plan = Plan::make(&Texts::of(text), &serde_json::Map::new()).map_err(told)?;
    let builtin = Catalogue::builtin();
    let problems = told(flow::check::problems(&plan, &|name| builtin.find(name).cloned()));
    let ends = plan.graph.edge_indices().filter_map(|edge| plan.graph.edge_endpoints(edge));
    let edges = ends.map(|(from, to)| (from.index(), to.index())).collect();
    let order = plan.order.iter().map(|node| node.index()).collect();
    Ok(FlowShape { nodes: plan.graph.node_count(), order, last: plan.finally.len(), edges, printed: [plan.shown(), plan.dot()], problems })
}

/// The lines of a job's log, or what is wrong with each, for a person; and how many bytes are whole lines.
///
/// # Errors
/// A line says that the log has a newer format.
pub fn log_lines(text: &[u8]) -> io::Result<(Vec<Result<LogLine, String>>, u64)> {
    let mut lines = Vec::new();
    let mut each = |line: Result<LogLine, log::Damage>| lines.push(line.map_err(|damage| damage.problem));
    let (end, _torn) = log::whole_lines(Path::new("54k2-9xqd-4fz1.log"), &mut Cursor::new(text), 0, &mut each)?;
    Ok((lines, end))
}

/// A line as it is appended to a job's log.
///
/// # Errors
/// It cannot be kept.
pub fn kept(line: &LogLine) -> io::Result<Vec<u8>> {
    log::text_of(line)
}

/// What a host has answered to a call whose HTTP response had this body, or what that means for the call.
///
/// # Errors
/// It is no answer.
pub async fn answer<R: DeserializeOwned>(body: &[u8]) -> Result<R, Verdict> {
    let body = Bytes::copy_from_slice(body);
    let exchange = service_fn(move |_request: HttpRequest| -> Exchanged {
        let body = body.clone();
        Box::pin(async move { Ok(HttpResponse::new(Full::new(body))) })
    });
    let question = Question { method: "test.ping", params: rpc_params![], max_bytes: u32::MAX, within: WITHIN };
    let sent = Sent::default();
    client::put(question, exchange, &sent).await.map_err(|failure| failure.shortened().into_verdict())
}

/// What a host answered to `jobs.logs` of these, from these offsets of [`Stream::ALL`] on: what it carried of each, and the offsets behind.
///
/// # Errors
/// It is not an answer to that.
pub fn pieces(asked: (JobId, MinionJobId), offsets: [u64; 2], max_bytes: u32, logs: JobLogs) -> Result<([Vec<u8>; 2], [u64; 2]), String> {
    let (job, minion_job_id) = asked;
    Asked { job, minion_job_id, is_child: false, offsets, max_bytes }.check(logs).map(|answer| (answer.bytes, answer.offsets))
}

/// What the bytes of a package say of it: its name, version and architecture; or what is wrong with them, for a person.
///
/// # Errors
/// They are no package.
pub fn package(bytes: &[u8]) -> Result<[String; 3], String> {
    describe(bytes).map(|says| [says.name, says.version, says.arch])
}

/// What `overlord deploy` makes of all that a host says to it: how many bytes are kept of it, and the verdict if the script has failed.
#[must_use]
pub fn deploy_report(said: &[u8]) -> (usize, Option<Verdict>) {
    deploy::read_report(said)
}

/// A text of a host as a terminal may have it.
#[must_use]
pub fn harmless(text: &str) -> String {
    output::harmless(text)
}

/// JSON text as a terminal may have it.
#[must_use]
pub fn harmless_json(text: &str) -> String {
    output::harmless_json(text).into_owned()
}

/// A text as a line on standard error.
#[must_use]
pub fn remarked(text: &str) -> String {
    output::remarked(text)
}

/// The answer of one host as lines for a person.
#[must_use]
pub fn shown(host: &MinionName, verdict: &Verdict) -> String {
    aggregate::fold([(host, verdict)]).iter().map(|group| output::text::group(group, None)).collect()
}

/// What a host wrote in these pieces, as a terminal gets it: as it is, or in lines with its name.
#[must_use]
pub fn log_text(host: &MinionName, pieces: &[&[u8]], is_named: bool) -> String {
    let mut text = LogText::new(if is_named { Naming::Named } else { Naming::Bare });
    let mut shown: String = pieces.iter().map(|piece| text.take(host, Stream::Stdout, piece)).collect();
    shown.extend(text.end(host).into_iter().map(|(_, rest)| rest));
    shown
}
