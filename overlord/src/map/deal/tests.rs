//! Who gets what, without anybody to get it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use common::job::HostState;

use super::*;

const MUCH: Wanted = Wanted { items: 256, bytes: 1 << 20 };

fn deal(items: usize, hosts: usize, retries: u32) -> Deal {
    let lines: String = (0..items).map(|item| format!("{item}\n")).collect();
    let items = Items::take_in("items", lines.as_bytes(), 1000).unwrap();
    Deal::new(items, (1..=hosts).map(|host| format!("web{host}").parse().unwrap()), hosts, retries)
}

fn chunk(deal: &mut Deal, host: usize, wanted: Wanted) -> Vec<Item> {
    match deal.deal(host, wanted, Instant::now()) {
        Dealt::Chunk(chunk) => chunk,
        other => panic!("{other:?}"),
    }
}

fn indexes(chunk: &[Item]) -> Vec<u64> {
    chunk.iter().map(|item| item.index).collect()
}

fn lost() -> Outcome {
    Outcome::not_run(Verdict::lost("silence"), Timestamp::UNIX_EPOCH)
}

fn done() -> Outcome {
    Outcome::not_run(Verdict::Ok { result: 1.into() }, Timestamp::UNIX_EPOCH)
}

#[test]
fn hosts_share_what_is_left_and_the_last_is_waited_for() {
    let mut deal = deal(10, 2, 0);
    let (first, second) = (chunk(&mut deal, 0, MUCH), chunk(&mut deal, 1, MUCH));
    assert_eq!((indexes(&first), indexes(&second)), ((0..5).collect(), (5..8).collect()));
    let third = chunk(&mut deal, 1, MUCH);
    let fourth = chunk(&mut deal, 1, MUCH);
    assert_eq!((indexes(&third), indexes(&fourth)), (vec![8], vec![9]));
    assert_eq!(deal.deal(0, MUCH, Instant::now()), Dealt::Wait, "what is under way may come back");
    for item in [first, second, third, fourth].iter().flatten() {
        let _ended = deal.end(0, item, done(), 10);
    }
    assert_eq!(deal.deal(0, MUCH, Instant::now()), Dealt::Over);
}

#[test]
fn a_chunk_has_a_largest_size_and_at_least_one_item() {
    let mut deal = deal(100, 1, 0);
    let wanted = Wanted { items: 256, bytes: 5 };
    assert_eq!(indexes(&chunk(&mut deal, 0, wanted)), [0, 1], "two of two bytes");
    assert_eq!(indexes(&chunk(&mut deal, 0, Wanted { bytes: 0, ..wanted })), [2]);
    assert_eq!(indexes(&chunk(&mut deal, 0, wanted)), [3, 4], "the one that did not fit comes next");
}

#[test]
fn what_was_not_begun_goes_to_the_next_host() {
    let mut deal = deal(4, 2, 0);
    let taken = chunk(&mut deal, 0, MUCH);
    taken.into_iter().for_each(|item| deal.give_back(item));
    assert_eq!(indexes(&chunk(&mut deal, 1, MUCH)), [0, 1]);
}

#[test]
fn what_may_have_run_is_lost_unless_it_may_run_again_alone_and_elsewhere() {
    let mut none = deal(2, 1, 0);
    let item = chunk(&mut none, 0, MUCH).remove(0);
    assert_eq!(none.lose(0, item, lost()).unwrap().outcome.verdict.state(), HostState::Lost);

    let mut once = deal(6, 2, 1);
    for item in chunk(&mut once, 0, Wanted { items: 2, ..MUCH }) {
        assert_eq!(once.lose(0, item, lost()), None);
    }
    assert_eq!(indexes(&chunk(&mut once, 0, MUCH)), [2, 3, 4], "the other host gets those");
    assert_eq!(indexes(&chunk(&mut once, 1, MUCH)), [0], "each alone");
    let second = chunk(&mut once, 1, MUCH);
    assert_eq!(indexes(&second), [1]);
    let ended = once.lose(1, second.into_iter().next().unwrap(), lost()).unwrap();
    let message = &ended.outcome.verdict.error().unwrap().message;
    assert!(message.contains("set aside") && message.contains("web1 and web2"), "{message}");
}

#[test]
fn an_item_is_set_aside_after_two_hosts_however_often_it_may_run() {
    let mut deal = deal(1, 3, 9);
    let first = chunk(&mut deal, 0, MUCH).remove(0);
    assert_eq!(deal.lose(0, first, lost()), None);
    assert_eq!(deal.deal(0, MUCH, Instant::now()), Dealt::Wait);
    let second = chunk(&mut deal, 2, MUCH).remove(0);
    let ended = deal.lose(2, second, lost()).unwrap();
    assert_eq!(ended.outcome.verdict.state(), HostState::Lost);
    assert_eq!(deal.deal(1, MUCH, Instant::now()), Dealt::Over, "the third is not risked");
}

#[test]
fn the_only_host_that_is_left_may_run_it_again() {
    let mut deal = deal(1, 2, 2);
    let item = chunk(&mut deal, 0, MUCH).remove(0);
    assert_eq!(deal.lose(0, item, lost()), None);
    assert_eq!(deal.deal(0, MUCH, Instant::now()), Dealt::Wait);
    deal.blame(1, Instant::now(), Failure::new(ErrorCode::Denied, "no").into_refusal(), Instant::now());
    let item = chunk(&mut deal, 0, MUCH).remove(0);
    assert_eq!(deal.lose(0, item, lost()), None, "one host, twice");
    let item = chunk(&mut deal, 0, MUCH).remove(0);
    assert_eq!(deal.lose(0, item, lost()).unwrap().outcome.verdict.error().unwrap().message, "silence");
}

#[test]
fn a_host_that_gets_nothing_done_gets_no_more() {
    let mut deal = deal(3, 2, 0);
    let refused = || Verdict::undelivered("refused");
    let mut now = Instant::now();
    for _twice in 0..2 {
        for failures in 1..FAILURES_MAX {
            deal.blame(0, now, refused(), now);
            let Dealt::Rest(until) = deal.deal(0, MUCH, now) else { panic!("it rests") };
            assert_eq!(until - now, PAUSE * 2_u32.pow(failures - 1));
            now = until;
        }
        deal.thank(0);
    }
    for _failure in 1..=FAILURES_MAX {
        assert!(deal.live().any(|host| host == 0));
        deal.blame(0, now, refused(), now);
        now += PAUSE * 100;
    }
    assert_eq!(deal.deal(0, MUCH, now), Dealt::Over);
    deal.blame(1, now, Failure::new(ErrorCode::Denied, "no rule").into_refusal(), now);
    let left: Vec<Ended> = std::iter::from_fn(|| deal.left()).collect();
    assert_eq!(left.iter().map(|ended| ended.index).collect::<Vec<_>>(), [0, 1, 2]);
    let error = left.first().unwrap().outcome.verdict.clone();
    assert_eq!(error.state(), HostState::Undelivered);
    assert_eq!(error.error().unwrap().message, "no host takes it: web1: refused; web2: no rule");
}

#[test]
fn what_a_host_had_at_once_fails_once() {
    let mut deal = deal(100, 1, 0);
    let now = Instant::now();
    for _chunk in 0..100 {
        deal.blame(0, now, Verdict::undelivered("refused"), now + PAUSE / 2);
    }
    assert_eq!(deal.deal(0, MUCH, now + PAUSE), Dealt::Rest(now + PAUSE / 2 + PAUSE));
    assert!(matches!(deal.deal(0, MUCH, now + PAUSE * 2), Dealt::Chunk(_)));
}

/// An item that was lost once is lost, whatever nobody did with it since.
#[test]
fn what_may_have_run_never_counts_as_undelivered() {
    let now = Instant::now();
    let ends: [fn(&mut Deal, Item, Instant); 3] = [
        |deal, _, now| deal.blame(0, now, Failure::new(ErrorCode::Denied, "no rule").into_refusal(), now),
        |deal, _, _| deal.stop(),
        |deal, item, _| {
            let ended = deal.refuse(0, item, Outcome::not_run(Verdict::undelivered("too large"), Timestamp::UNIX_EPOCH)).unwrap();
            assert_eq!((ended.outcome.verdict.state(), ended.host), (HostState::Lost, Some("web1".parse().unwrap())));
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let mut deal = deal(1, 1, 1);
        let item = chunk(&mut deal, 0, MUCH).remove(0);
        assert_eq!(deal.lose(0, item, lost()), None);
        let again = if number == 2 { chunk(&mut deal, 0, MUCH).remove(0) } else { deal.again.get(&0).cloned().unwrap() };
        end(&mut deal, again, now);
        if let Some(left) = deal.left() {
            assert_eq!((left.outcome.verdict.state(), left.host), (HostState::Lost, Some("web1".parse().unwrap())));
        }
        assert_eq!(deal.left(), None);
    }
}

#[test]
fn an_item_that_is_too_large_for_a_host_goes_to_another() {
    let too_large = || Outcome::not_run(Verdict::undelivered("too large"), Timestamp::UNIX_EPOCH);
    let mut deal = deal(1, 9, 0);
    for host in 0..TOO_LARGE_MAX {
        let item = chunk(&mut deal, host, MUCH).remove(0);
        let ended = deal.refuse(host, item, too_large());
        assert_eq!(ended.is_some(), host + 1 == TOO_LARGE_MAX);
        assert_ne!(matches!(deal.deal(host, MUCH, Instant::now()), Dealt::Wait), ended.is_some(), "it is not given to the same again");
    }
    assert_eq!(deal.deal(8, MUCH, Instant::now()), Dealt::Over);
}

#[test]
fn not_more_is_held_than_there_is_room_for() {
    let mut deal = deal(20_000, 1, 0);
    let mut taken = Vec::new();
    while let Dealt::Chunk(chunk) = deal.deal(0, MUCH, Instant::now()) {
        taken.extend(chunk);
    }
    assert_eq!(taken.len() as u64, AHEAD_MAX_ITEMS);
    deal.print(1, 0);
    assert_eq!(indexes(&chunk(&mut deal, 0, MUCH)), [AHEAD_MAX_ITEMS]);
    for item in taken.iter().skip(1) {
        let _ended = deal.end(0, item, done(), HELD_MAX_BYTES / 1000);
    }
    deal.print(100, 0);
    assert_eq!(deal.deal(0, MUCH, Instant::now()), Dealt::Wait, "results wait for the one before them");
    deal.print(101, HELD_MAX_BYTES * 17);
    assert!(matches!(deal.deal(0, MUCH, Instant::now()), Dealt::Chunk(_)));
}

#[test]
fn who_stops_it_hears_of_what_was_dealt_and_how_many_were_not() {
    let mut deal = deal(10, 2, 0);
    let item = chunk(&mut deal, 0, Wanted { items: 1, ..MUCH }).remove(0);
    deal.stop();
    deal.give_back(item);
    assert_eq!(deal.deal(0, MUCH, Instant::now()), Dealt::Over);
    assert_eq!(deal.left().unwrap().index, 0);
    assert_eq!((deal.left(), deal.untouched()), (None, 9));
}
