use std::time::Duration;

use audit_stream_testplane::pki::Authority;

use super::*;
use crate::testing::peer;

/// The middle of a year.
fn year(year: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952 + 15_000_000))
}

fn bundle(authority: &Authority) -> Arc<CaBundle> {
    Arc::new(CaBundle::parse(authority.certificate_pem().as_bytes()).unwrap())
}

#[test]
fn a_certificate_that_was_vouched_for_expires_all_the_same() {
    let authority = Authority::new("webhook");
    let (bundle, vouched) = (bundle(&authority), Vouched::default());
    let peer = peer(&authority.client_during("a", 2020, 2023));
    let at = |now| vouched.by(&bundle, now, &peer.certificates);
    let years = [2019, 2020, 2022, 2023, 2021, 2019, 2021].map(|now| at(year(now)));
    assert_eq!(years, [false, true, true, false, true, false, true]);
    // To the second, and not one later.
    let last = validity(&peer.certificates).unwrap().end().unsigned_abs();
    let around = [last, last + 1].map(|seconds| at(UnixTime::since_unix_epoch(Duration::from_secs(seconds))));
    assert_eq!(around, [true, false]);
}

#[test]
fn it_is_not_asked_again_who_vouches_for_somebody_until_the_bundle_is_another() {
    let authority = Authority::new("webhook");
    let (first, same) = (bundle(&authority), bundle(&authority));
    let (vouched, peer) = (Vouched::default(), peer(&authority.client_during("a", 2020, 2023)));
    let remembers = |bundle| vouched.by(bundle, year(2021), &[]);
    assert!(!remembers(&first));
    assert!(vouched.by(&first, year(2021), &peer.certificates));
    assert!(remembers(&first) && remembers(&first));
    assert!(!remembers(&same));
    assert!(!remembers(&first), "a bundle that no longer vouches leaves nothing");
    assert!(!vouched.by(&bundle(&Authority::new("webhook")), year(2021), &peer.certificates));
}

#[test]
fn all_of_a_chain_has_to_be_valid_for_it_to_be_remembered() {
    let authority = Authority::new("webhook");
    let chain = [(2010, 2030), (2015, 2040), (2000, 2025)]
        .map(|(from, until)| peer(&authority.client_during("a", from, until)).certificates.swap_remove(0));
    let [_, latest, earliest] = [0, 1, 2].map(|at| validity(&chain[at..=at]).unwrap());
    assert_eq!(validity(&chain), Some(*latest.start()..=*earliest.end()));
    assert_eq!(validity(&[chain[0].clone(), CertificateDer::from(vec![0])]), None);
}
