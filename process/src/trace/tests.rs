use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn parse(traceparent: &str) -> Option<Context> {
    Context::parse(traceparent.as_bytes(), None)
}

#[test]
fn passes_on_what_it_read() {
    for traceparent in [PARENT, &PARENT.replace("-01", "-00"), &PARENT.replace("-01", "-03")] {
        assert_eq!(parse(traceparent).unwrap().traceparent(), traceparent);
    }
    let later = parse(&format!("{}-more", PARENT.replacen("00", "01", 1).replace("b7-01", "b7-ff"))).unwrap();
    assert_eq!(
        later.traceparent(),
        PARENT.replace("b7-01", "b7-03"),
        "an unknown version is answered by ours"
    );
}

#[test]
fn refuses_what_is_no_traceparent() {
    for bad in [
        "",
        &PARENT[1..],
        &format!("{PARENT}-more"),
        &PARENT.replacen("00", "ff", 1),
        &PARENT.replace("4bf9", "4BF9"),
        &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
        &PARENT.replace("-01", "_01"),
        &PARENT.replace("-01", "-0g"),
        &format!("{}more", PARENT.replacen("00", "01", 1)),
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn a_bad_state_is_dropped_alone() {
    let state = |said: &str| {
        let context = Context::parse(PARENT.as_bytes(), Some(said.as_bytes())).unwrap();
        context.tracestate().map(str::to_owned)
    };
    assert_eq!(state("a=1, b@c=2"), Some("a=1, b@c=2".into()));
    assert_eq!(state("a=1,,b=2"), Some("a=1,,b=2".into()), "empty members are allowed");
    let many = vec!["a=1"; MAX_STATE_MEMBERS + 1].join(",");
    for bad in ["", "a", "=1", "a=\u{e9}", "a=1\nb=2", &many, &format!("a={}", "x".repeat(MAX_STATE_BYTES))] {
        assert_eq!(state(bad), None, "{bad}");
    }
}

#[test]
fn a_child_keeps_the_trace() {
    let mut ids = Ids::seeded(1);
    let parent = Context::parse(PARENT.as_bytes(), Some(b"a=1")).unwrap();
    let child = parent.child(&mut ids);
    assert_eq!((child.trace, child.sampled, child.tracestate()), (parent.trace, true, Some("a=1")));
    assert_ne!(child.span, parent.span);
    assert_eq!(Context::root(&mut ids, false).traceparent()[53..], *"02");
}

#[test]
fn samples_its_share_and_agrees_with_itself() {
    let mut ids = Ids::seeded(7);
    let traces: Vec<_> = (0..10_000).map(|_| ids.trace()).collect();
    let share = |ratio| traces.iter().filter(|&&trace| sampled(trace, ratio)).count();
    assert_eq!((share(0.0), share(1.0)), (0, 10_000));
    assert!((900..1_100).contains(&share(0.1)), "{}", share(0.1));
    assert!(traces.iter().all(|&trace| !sampled(trace, 0.1) || sampled(trace, 0.2)));
}

#[test]
fn ids_differ_by_thread_and_draw() {
    let draw = || with_ids(|ids| (0..100).map(|_| ids.trace()).collect::<Vec<_>>());
    let mut all = draw();
    all.extend(std::thread::spawn(draw).join().unwrap());
    let different: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(different.len(), 200);
}

#[test]
fn no_span_unless_sampled() {
    let context = Context::root(&mut Ids::seeded(1), false);
    assert_eq!(Span::begin(&context, None, Kind::Server, "GET", SystemTime::UNIX_EPOCH), None);
}
