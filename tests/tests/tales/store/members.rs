//! An etcd of three members, of which one or two are lost, while two control planes go on.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn without_one_member_of_three_commits_rule_and_without_two_they_wait() {
    let source = Source::new().await;
    let mut members = EtcdServer::cluster([ip(10, 1), ip(10, 2), ip(10, 3)]);
    let urls = members.each_ref().map(EtcdServer::url);
    let mut reader = Reader::of(store_at(urls.to_vec()));
    let places = [ip(10, 4), ip(10, 5)];
    let mut serves = Primary::among(&places, &source, &urls, 15);
    let mut other = Primary::among(&[places[1], places[0]], &source, &urls, 15);
    let mut n = 1;
    begin(&mut serves, &mut other, &source.commit(n)).await;

    // Each in turn, the one that leads first; then it and the control plane in the middle of a publish.
    let mut order = [0, 1, 2];
    order.sort_by_key(|&at| !members[at].leads());
    for at in order {
        members[at].kill();
        n += 1;
        serves.serves(&source.commit(n)).await;
        reader.said(n);
        reader.sees(n).await;
        members[at].again();

        let leader = members.iter().position(EtcdServer::leads).unwrap();
        n += 1;
        let commit = source.commit(n);
        members[leader].kill();
        serves.kill();
        other.serves(&commit).await;
        reader.said(n);
        reader.sees(n).await;
        members[leader].again();
        serves.start();
        serves.stands_by_for(&other).await;
        std::mem::swap(&mut serves, &mut other);
    }

    // Two of three agree on nothing: what is in force stays, and the commit comes with the second.
    members[0].kill();
    members[1].kill();
    n += 1;
    let commit = source.commit(n);
    let status = serves.tells("the store is away", store_is_away).await;
    assert_ne!(status.commit.as_ref(), Some(&commit));
    members[1].again();
    serves.serves(&commit).await;
    reader.said(n);
    reader.sees(n).await;
}
