//! What a loss may cost.

use crate::{
    cell::{Cell, LATE},
    fault::Way,
};

/// Of a silent drop: one request in so many may fail.
const ONE_IN: usize = 1000;
/// And after so many milliseconds none is late.
const SILENCE_MILLIS: u64 = 3000;
/// The same of what is killed, stopped or rejected: the first moment.
const MOMENT_MILLIS: u64 = 2000;
/// What none waits longer for then: the longest first-byte time of the shop, the front's, and the rest of a request.
const LONGEST_MILLIS: u64 = 10_000 + LATE.as_millis() as u64;

/// The rules that a cell breaks, in words.
pub fn broken(cell: &Cell) -> Vec<String> {
    let Cell { gets, orders, back, ended, .. } = cell;
    let mut broken = Vec::new();
    let allowed = if cell.way == Way::Drop { gets.meanwhile / ONE_IN } else { 0 };
    if gets.failed() > allowed {
        broken.push(format!("{} of {} GETs failed, {allowed} may", gets.failed(), gets.meanwhile));
    }
    let moment = if cell.way == Way::Drop { SILENCE_MILLIS } else { MOMENT_MILLIS };
    if gets.failover_millis > moment {
        broken.push(format!("requests were late for {} ms, {moment} may be", gets.failover_millis));
    }
    if cell.way != Way::Drop && gets.longest_millis > LONGEST_MILLIS {
        broken.push(format!("a request waited for {} ms, {LONGEST_MILLIS} may be", gets.longest_millis));
    }
    if orders.twice > 0 {
        broken.push(format!("{} orders were executed twice", orders.twice));
    }
    if orders.lost > 0 {
        broken.push(format!("{} acknowledged orders were lost", orders.lost));
    }
    broken.extend(back.whole().err());
    broken.extend(ended.iter().map(|words| words.replace('\n', "; ")));
    broken
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::{
        back::Back,
        cell::{Gets, Orders},
        fault::Row,
    };

    pub fn cell(way: Way, failed: usize, failover_millis: u64) -> Cell {
        Cell {
            row: Row::Gateway,
            way,
            gets: Gets {
                meanwhile: 2400,
                failed: [("503".to_owned(), failed), ("the answer broke off".to_owned(), 7)].into(),
                failover_millis,
                ..Gets::default()
            },
            orders: Orders { all: 600, undone: [("503".to_owned(), 3)].into(), ..Orders::default() },
            back: Back { serving: Some(10), carrying: Some(2000), ruled: Some(500) },
            flows: Vec::new(),
            told: vec![("proxy away".to_owned(), ["west-gateway-1".to_owned()].into(), 800)],
            ended: Vec::new(),
        }
    }

    #[test]
    fn only_what_is_dropped_in_silence_may_cost_anything() {
        assert_eq!(broken(&cell(Way::Kill, 0, 2000)), Vec::<String>::new(), "late is not failed");
        assert_eq!(broken(&cell(Way::Reject, 1, 0)), ["1 of 2400 GETs failed, 0 may"]);
        assert_eq!(broken(&cell(Way::Drop, 2, 3000)), Vec::<String>::new());
        assert_eq!(
            broken(&cell(Way::Drop, 3, 3001)),
            ["3 of 2400 GETs failed, 2 may", "requests were late for 3001 ms, 3000 may be"]
        );
    }

    #[test]
    fn what_hangs_delays_only_the_first_and_not_for_long() {
        let mut cell = cell(Way::Stop, 0, 2001);
        cell.gets.longest_millis = 10_901;
        assert_eq!(
            broken(&cell),
            ["requests were late for 2001 ms, 2000 may be", "a request waited for 10901 ms, 10900 may be"]
        );
        (cell.gets.failover_millis, cell.gets.longest_millis) = (2000, 10_900);
        assert_eq!(broken(&cell), Vec::<String>::new());
    }

    #[test]
    fn what_was_lost_comes_back_and_nothing_else_ends() {
        let mut cell = cell(Way::Kill, 0, 0);
        cell.back.carrying = None;
        cell.ended = vec!["weft-proxy on west-ingress ended (exit status: 1): one\ntwo".to_owned()];
        assert_eq!(
            broken(&cell),
            ["not carrying within 60 s", "weft-proxy on west-ingress ended (exit status: 1): one; two"]
        );
    }

    #[test]
    fn no_order_is_executed_twice_or_lost() {
        let mut cell = cell(Way::Stop, 0, 0);
        (cell.orders.twice, cell.orders.lost) = (1, 2);
        assert_eq!(broken(&cell), ["1 orders were executed twice", "2 acknowledged orders were lost"]);
    }
}
