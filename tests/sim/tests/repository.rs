//! The commits of a simulation are ones that the gate takes. Here, since the library is built once, without tests.

use controlplane::{
    gate::{self, Tree},
    ownership::Ownership,
};
use simulation::repository::{Change, Repository, marks, source};

#[test]
fn every_commit_passes_the_gate_and_bears_its_mark() {
    let mut repository = Repository::new(&["east", "west"]);
    for change in [Change::Permission, Change::Marks, Change::Nothing, Change::Removal("west")] {
        let commit = repository.commit(change);
        let tree = Tree::read(&commit.checkout());
        let wrong = gate::judge(&tree, &Ownership::sole(source()), &[], &[]);
        assert!(wrong.is_empty(), "{change:?}: {wrong:?}");
    }
    let last = repository.last();
    assert_eq!((last.mark, last.denies, last.members.len()), (3, true, 1));
    assert_eq!(marks(b"..rev-3-x.rev-12-x,rev-,rev--x,rev-4,rev-5x"), [3, 12].into());
}
