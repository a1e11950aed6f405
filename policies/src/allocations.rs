//! Counts allocations, so that "judging allocates nothing" is a test and not a hope.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use crate::{
    Action, Authorizer, DefaultAction, Judgement, Mode, Policy, Rule, Surface, Verdict, check, fixture::Told,
};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; the counter is a thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn policy(action: Action, when: &str) -> Policy {
    let rule = Rule { name: "r".into(), when: Some(check(when, Surface::Http).unwrap()) };
    Policy {
        name: "shop/p".into(),
        action,
        mode: Mode::Enforce,
        rules: vec![rule; 5],
        commit: "c0ffee".into(),
    }
}

#[test]
fn judging_allocates_nothing_on_the_common_path() {
    let readers = r#"source.serviceAccount == "front" && request.method in ["GET", "HEAD"] && request.headers["x-user"] != """#;
    let admin =
        r#"request.path.startsWith("/admin") || request.queryParams["debug"] == "1" || request.size > 1000"#;
    let told = Told::new("from=shop/front@west GET /reviews/1?page=2 x-user:ann content-length:12");
    let facts = told.facts();

    let by_default = Authorizer::new(vec![policy(Action::Deny, admin)], DefaultAction::Allow);
    let by_rule = Authorizer::new(
        vec![policy(Action::Allow, readers), policy(Action::Deny, admin)],
        DefaultAction::Deny,
    );
    for authorizer in [by_default, by_rule] {
        let before = COUNT.get();
        let Judgement { verdict, .. } = authorizer.judge(&facts);
        assert_eq!(COUNT.get(), before);
        assert!(matches!(verdict, Verdict::Allow(_)));
    }
}
