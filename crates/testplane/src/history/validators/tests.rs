//! For each promise: the ways to break it, each of which its validator has to find in an otherwise good story.

use super::*;
use crate::history::tests::*;
use crate::history::{Bookmarks, End, Frame, History, Moment, Scope, Session, Start, Transcript};

/// What a validator finds in the story after a change to it.
fn found(validator: Validator, change: impl FnOnce(&mut History)) -> Option<Violation> {
    let mut history = good();
    change(&mut history);
    validator(&Examined::new(&history).unwrap()).err()
}

/// That it finds this: whose promise was broken, in which session, at which place.
#[track_caller]
fn assert_found(
    validator: Validator,
    expected: (Rule, &str, usize, Option<u64>),
    change: impl FnOnce(&mut History),
) -> String {
    let Violation { rule, reader, session, place, expected: words } = found(validator, change).expect("nothing found");
    assert_eq!((rule, &*reader, session, place), expected, "{words}");
    words
}

#[track_caller]
fn assert_fine(validator: Validator, change: impl FnOnce(&mut History)) {
    assert_eq!(found(validator, change), None);
}

fn frames(history: &mut History, reader: usize, session: usize) -> &mut Vec<Frame> {
    &mut history.transcripts[reader].sessions[session].frames
}

fn in_shop() -> Scope {
    Scope::Namespace("shop".to_owned())
}

/// The event of this number as its readers see it, at its own place or another one.
fn cluster_event(number: usize, place: u64) -> Frame {
    added(&Scope::Cluster, place, &events()[number], None)
}

fn shop_event(number: usize, place: u64) -> Frame {
    added(&in_shop(), place, &events()[number], None)
}

/// The event of this number, announcing a gap before it.
fn behind_a_gap(number: usize, count: Option<u64>) -> Frame {
    added(&Scope::Cluster, PLACES[number], &events()[number], Some(&gap(count, "bandwidth")))
}

// === Ordered ===

#[test]
fn places_that_go_back_are_found() {
    let words = assert_found(ordered, (Rule::Ordered, "cluster", 0, Some(11)), |story| {
        frames(story, CLUSTER, 0).swap(0, 1);
    });
    assert_eq!(words, "a place above 12");
    assert_found(ordered, (Rule::Ordered, "shop", 1, Some(14)), |story| {
        frames(story, IN_SHOP, 1).insert(0, shop_event(3, 14));
    });
}

#[test]
fn a_session_that_goes_back_behind_where_it_was_asked_to_begin_is_found() {
    assert_found(ordered, (Rule::Ordered, "cluster", 0, Some(11)), |story| {
        story.transcripts[CLUSTER].sessions[0].start = Start::After(12);
    });
}

#[test]
fn a_reader_that_begins_anew_does_not_go_back() {
    let now = |story: &mut History| story.transcripts[IN_SHOP].sessions[1].start = Start::Now;
    assert_fine(ordered, now);
    assert_found(ordered, (Rule::Ordered, "shop", 1, Some(20)), |story| {
        now(story);
        // It had been told that it was here.
        frames(story, IN_SHOP, 0).push(bookmark(20, None));
    });
}

#[test]
fn an_event_in_two_places_is_found() {
    assert_found(ordered, (Rule::Ordered, "shop", 0, Some(15)), |story| {
        frames(story, IN_SHOP, 0)[1] = shop_event(3, 15);
    });
}

#[test]
fn two_events_in_one_place_are_found() {
    // Everybody else sees event 1 there.
    assert_found(ordered, (Rule::Ordered, "shop", 0, Some(12)), |story| {
        story.transcripts.swap(CLUSTER, MARKED);
        for reader in [CLUSTER, MARKED, EVERYWHERE] {
            frames(story, reader, 0).retain(|frame| frame.place() != Some(11));
        }
        frames(story, IN_SHOP, 0)[0] = shop_event(0, 12);
    });
}

#[test]
fn two_readers_who_disagree_about_the_order_are_found() {
    // Each of them sees places that grow.
    let found = found(ordered, |story| {
        let frames = frames(story, CLUSTER, 0);
        frames[0] = cluster_event(1, 11);
        frames[1] = cluster_event(0, 12);
    });
    assert_eq!(found.unwrap().rule, Rule::Ordered);
}

#[test]
fn what_was_sent_after_an_answer_and_is_before_it_is_found() {
    assert_found(ordered, (Rule::Ordered, "cluster", 0, Some(11)), |story| {
        story.batches[0].first_sent = Moment(9);
        story.batches[0].accepted = Some(Moment(10));
    });
    // Side by side they may be in any order.
    assert_fine(ordered, |story| {
        story.batches[0].first_sent = Moment(7);
        story.batches[0].accepted = Some(Moment(10));
    });
}

#[test]
fn a_batch_that_is_out_of_order_is_found() {
    assert_found(ordered, (Rule::Ordered, "cluster", 0, Some(12)), |story| story.batches[0].events.swap(1, 2));
}

#[test]
fn an_event_behind_an_error_is_found() {
    assert_fine(ordered, |story| frames(story, CLUSTER, 0).push(error(410)));
    assert_found(ordered, (Rule::Ordered, "cluster", 0, None), |story| frames(story, CLUSTER, 0).insert(7, error(410)));
}

// === Unique ===

#[test]
fn an_event_that_is_there_twice_is_found() {
    let words = assert_found(unique, (Rule::Unique, "cluster", 0, Some(24)), |story| {
        frames(story, CLUSTER, 0).push(cluster_event(7, 24));
    });
    assert!(words.starts_with("the event id-3 "), "{words}");
    assert_found(unique, (Rule::Unique, "shop", 1, Some(24)), |story| {
        frames(story, IN_SHOP, 1).push(shop_event(0, 24));
    });
}

#[test]
fn a_place_that_is_there_twice_is_found() {
    assert_found(unique, (Rule::Unique, "cluster", 0, Some(23)), |story| {
        frames(story, CLUSTER, 0).push(cluster_event(7, 23));
    });
    assert_found(unique, (Rule::Unique, "shop", 1, Some(14)), |story| {
        frames(story, IN_SHOP, 1).insert(0, shop_event(4, 14));
    });
}

#[test]
fn an_event_that_is_not_as_it_was_sent_is_found() {
    let altered = |scope: &Scope, number: usize, from: &str, to: &str| {
        let Frame::Added(good) = added(scope, PLACES[number], &events()[number], None) else { panic!() };
        let line = std::str::from_utf8(good.line()).unwrap();
        assert!(line.contains(from), "{line}");
        read(&line.replace(from, to))
    };
    for (from, to) in [("10.0.0.7", "10.0.0.8"), (r#","verb":"#, r#", "verb":"#), (r#""sourceIPs":["10.0.0.7"],"#, "")]
    {
        assert_found(unique, (Rule::Unique, "cluster", 0, Some(11)), |story| {
            frames(story, CLUSTER, 0)[0] = altered(&Scope::Cluster, 0, from, to);
        });
    }
    // Also where somebody else received it as it was.
    assert_found(unique, (Rule::Unique, "marked", 0, Some(11)), |story| {
        frames(story, MARKED, 0)[1] = altered(&Scope::Cluster, 0, "10.0.0.7", "10.0.0.8");
    });
    for (from, to) in [
        ("agent 0", "agent 9"),
        (r#""level":"#, r#""sourceIPs":["10.0.0.7"],"level":"#),
        (r#""code":200"#, r#""code":200,"message":"m""#),
        ("tty=true", "tty=false"),
        ("pods/n", "pods/m"),
    ] {
        assert_found(unique, (Rule::Unique, "shop", 0, Some(11)), |story| {
            frames(story, IN_SHOP, 0)[0] = altered(&in_shop(), 0, from, to);
        });
    }
    // A URI that is not masked is not this validator's to judge: the view's own tests know which have to be.
    assert_fine(unique, |story| frames(story, IN_SHOP, 0)[0] = altered(&in_shop(), 0, "command=***", "command=ls"));
}

#[test]
fn an_event_that_nobody_sent_is_found() {
    assert_found(unique, (Rule::Unique, "cluster", 0, Some(24)), |story| {
        let stranger = sent(99, SHOP, "mallory");
        frames(story, CLUSTER, 0).push(added(&Scope::Cluster, 24, &stranger, None));
    });
}

#[test]
fn an_object_of_the_other_kind_is_found() {
    assert_found(unique, (Rule::Unique, "cluster", 0, Some(11)), |story| {
        frames(story, CLUSTER, 0)[0] = shop_event(0, 11);
    });
}

// === ReliableOrGap ===

#[test]
fn an_event_that_one_reader_lacks_is_found() {
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, Some(13)), |story| {
        frames(story, CLUSTER, 0).remove(2);
    });
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "bob", 0, Some(12)), |story| {
        // The place of event 6 says that it was there; it was open before anything was sent.
        frames(story, OF_BOB, 0).remove(0);
    });
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "shop", 0, Some(20)), |story| {
        frames(story, IN_SHOP, 1).remove(0);
    });
}

#[test]
fn an_event_that_a_bookmark_passes_over_is_found() {
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "shop", 0, Some(23)), |story| {
        frames(story, IN_SHOP, 1).remove(1);
    });
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "shop", 0, Some(23)), |story| {
        frames(story, IN_SHOP, 1).splice(1.., [bookmark(23, None)]);
    });
    // Without the bookmark nobody knows whether the reader was still there.
    assert_fine(reliable_or_gap, |story| frames(story, IN_SHOP, 1).truncate(1));
}

#[test]
fn an_event_that_a_watch_leaves_out_at_its_start_is_found() {
    // The bookmark says that the watch began behind it, but it was open before the event was sent.
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "marked", 0, Some(11)), |story| {
        frames(story, MARKED, 0).splice(..2, [initial(11)]);
    });
}

/// As if the server had accepted it and forgotten it.
fn lose(story: &mut History, number: usize) {
    for transcript in &mut story.transcripts {
        for session in &mut transcript.sessions {
            let is_lost = |frame: &Frame| matches!(frame, Frame::Added(added) if added.place == PLACES[number]);
            session.frames.retain(|frame| !is_lost(frame));
        }
    }
}

#[test]
fn an_event_that_all_readers_lack_is_found() {
    // Accepted, and what was sent later has arrived, or what is behind it in its batch.
    for number in 0..7 {
        assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, None), |story| lose(story, number));
    }
    // Behind the last there is nothing to know it by. The bookmark does not say when it was written.
    assert_fine(reliable_or_gap, |story| lose(story, 7));
    // And who came later need not have seen it.
    assert_fine(reliable_or_gap, |story| {
        lose(story, 0);
        story.transcripts.iter_mut().for_each(|transcript| transcript.sessions[0].opened = Moment(3));
        story.transcripts.remove(MARKED);
    });
}

#[test]
fn what_was_not_accepted_need_not_arrive() {
    let unanswered = |story: &mut History| {
        story.batches[0].accepted = None;
        (0..4).for_each(|number| lose(story, number));
    };
    assert_fine(reliable_or_gap, unanswered);
    assert_fine(reliable_or_gap, |story| {
        story.batches[0].accepted = None;
        lose(story, 1);
    });
    // But it may, and where one reader has it, all have.
    assert_fine(reliable_or_gap, |story| story.batches[0].accepted = None);
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, Some(12)), |story| {
        story.batches[0].accepted = None;
        frames(story, CLUSTER, 0).remove(1);
    });
}

#[test]
fn an_announced_gap_is_no_loss() {
    assert_fine(reliable_or_gap, |story| {
        let frames = frames(story, CLUSTER, 0);
        frames[3] = behind_a_gap(3, None);
        frames.remove(2);
    });
    assert_fine(reliable_or_gap, |story| {
        let frames = frames(story, MARKED, 0);
        frames[3] = bookmark(13, Some(&gap(None, "lag")));
    });
}

/// Before the first of its events, everybody is told that some of a batch could not be used.
fn announce_malformed(story: &mut History) {
    for transcript in &mut story.transcripts {
        let frames = &mut transcript.sessions[0].frames;
        let first = frames.iter().position(|frame| matches!(frame, Frame::Added(_))).unwrap();
        frames.insert(first, bookmark(10, Some(&gap(None, "malformed"))));
    }
}

#[test]
fn what_ingest_announces_before_a_batch_is_no_loss_in_it() {
    assert_fine(reliable_or_gap, |story| {
        lose(story, 2);
        announce_malformed(story);
    });
    assert_fine(reliable_or_gap, |story| {
        lose(story, 2);
        announce_malformed(story);
        // The same on the event itself.
        frames(story, CLUSTER, 0).remove(0);
        frames(story, CLUSTER, 0)[0] = added(&Scope::Cluster, 11, &events()[0], Some(&gap(None, "malformed")));
    });
    // The batch is that of the event behind the bookmark, not of the one that is in its place.
    assert_fine(reliable_or_gap, |story| {
        lose(story, 5);
        story.transcripts.drain(IN_SHOP..);
        frames(story, CLUSTER, 0).insert(4, bookmark(14, Some(&gap(None, "malformed"))));
        frames(story, MARKED, 0).insert(5, bookmark(14, Some(&gap(None, "malformed"))));
    });
    // In a batch before it is one,
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, None), |story| {
        lose(story, 1);
        frames(story, CLUSTER, 0)[4] = added(&Scope::Cluster, 21, &events()[5], Some(&gap(None, "malformed")));
    });
    // and in the next batch, and where others have it.
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, None), |story| {
        lose(story, 5);
        announce_malformed(story);
    });
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, Some(13)), |story| {
        announce_malformed(story);
        frames(story, CLUSTER, 0).remove(3);
    });
}

#[test]
fn a_gap_elsewhere_does_not_excuse_a_loss() {
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, Some(13)), |story| {
        let frames = frames(story, CLUSTER, 0);
        frames[4] = behind_a_gap(4, None);
        frames.remove(2);
    });
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "marked", 0, Some(13)), |story| {
        let frames = frames(story, MARKED, 0);
        frames[3] = bookmark(12, Some(&gap(None, "lag")));
    });
}

#[test]
fn a_gap_that_counts_wrong_is_found() {
    let gap_of_two = |story: &mut History, count| {
        let frames = frames(story, CLUSTER, 0);
        frames[3] = behind_a_gap(3, Some(count));
        frames.drain(1..3);
    };
    assert_fine(reliable_or_gap, |story| gap_of_two(story, 2));
    for wrong in [0, 1, 3] {
        let words = assert_found(reliable_or_gap, (Rule::ReliableOrGap, "cluster", 0, Some(14)), |story| {
            gap_of_two(story, wrong);
        });
        assert!(words.contains("counts 2 missing events"), "{words}");
    }
    // Who came later was not there for what was before.
    assert_fine(reliable_or_gap, |story| {
        story.transcripts[CLUSTER].sessions[0].opened = Moment(9);
        frames(story, CLUSTER, 0).splice(..5, [behind_a_gap(4, Some(0))]);
    });
    // Of what nobody saw, nobody can say whether it is in this gap.
    for unsure in [0, 1] {
        assert_fine(reliable_or_gap, |story| {
            lose(story, 2);
            announce_malformed(story);
            frames(story, CLUSTER, 0)[3] = behind_a_gap(3, Some(unsure));
        });
    }
}

#[test]
fn what_is_behind_a_cut_and_not_resumed_is_the_readers_own_loss() {
    assert_fine(reliable_or_gap, |story| {
        story.transcripts[IN_SHOP].sessions[1].start = Start::Now;
        story.transcripts[IN_SHOP].sessions[1].opened = Moment(9);
        frames(story, IN_SHOP, 1).remove(0);
    });
    // But what was sent while it was there again is not.
    assert_found(reliable_or_gap, (Rule::ReliableOrGap, "shop", 1, Some(20)), |story| {
        story.transcripts[IN_SHOP].sessions[1].start = Start::Now;
        frames(story, IN_SHOP, 1).remove(0);
    });
}

// === Resumable ===

#[test]
fn a_resumed_session_that_lacks_something_is_found() {
    for (index, place) in [(0, 20), (1, 23)] {
        assert_found(resumable, (Rule::Resumable, "shop", 1, Some(place)), |story| {
            frames(story, IN_SHOP, 1).remove(index);
        });
    }
    // Nobody has it, but it was sent after what is before the place had been accepted.
    assert_found(resumable, (Rule::Resumable, "shop", 1, None), |story| lose(story, 4));
    // It is judged by its own frames: what the session before had behind the place does not count.
    assert_found(resumable, (Rule::Resumable, "shop", 1, Some(14)), |story| {
        story.transcripts[IN_SHOP].sessions[1].start = Start::After(11);
    });
}

#[test]
fn a_resumed_session_that_goes_back_is_found() {
    assert_found(resumable, (Rule::Resumable, "shop", 1, Some(14)), |story| {
        frames(story, IN_SHOP, 1).insert(0, shop_event(3, 14));
    });
}

#[test]
fn falling_behind_is_no_excuse_for_who_asked_for_everything() {
    let gap_before_20 = |story: &mut History, reason: &str| {
        frames(story, IN_SHOP, 1)[0] = bookmark(20, Some(&gap(None, reason)));
    };
    assert_fine(resumable, |story| gap_before_20(story, "bandwidth"));
    assert_found(resumable, (Rule::Resumable, "shop", 1, Some(20)), |story| gap_before_20(story, "lag"));
    // Who did not ask may be told.
    assert_fine(reliable_or_gap, |story| gap_before_20(story, "lag"));
}

#[test]
fn a_place_that_is_gone_is_said_and_ends_the_session() {
    let gone = |end| {
        move |story: &mut History| {
            story.transcripts[IN_SHOP].sessions[1] = Session { end, ..session(Start::After(14), vec![error(410)]) };
        }
    };
    assert_fine(resumable, gone(End::Clean));
    assert_fine(reliable_or_gap, gone(End::Clean));
    assert_found(resumable, (Rule::Resumable, "shop", 1, None), gone(End::Broken("reset".to_owned())));
    assert_found(resumable, (Rule::Resumable, "shop", 1, None), |story| {
        frames(story, IN_SHOP, 1).insert(1, error(410));
    });
    // Behind what was still there it is as good.
    assert_fine(resumable, |story| {
        frames(story, IN_SHOP, 1).truncate(1);
        frames(story, IN_SHOP, 1).push(error(410));
    });
}

// === Bookmarkable ===

#[test]
fn a_bookmark_in_the_wrong_place_is_found() {
    // Below an event before it, below a bookmark before it, below where the session began.
    assert_found(bookmarkable, (Rule::Bookmarkable, "marked", 0, Some(22)), |story| {
        frames(story, MARKED, 0)[9] = bookmark(22, None);
    });
    assert_found(bookmarkable, (Rule::Bookmarkable, "marked", 0, Some(24)), |story| {
        frames(story, MARKED, 0).push(bookmark(24, None));
    });
    assert_found(bookmarkable, (Rule::Bookmarkable, "shop", 1, Some(13)), |story| {
        frames(story, IN_SHOP, 1).insert(0, bookmark(13, None));
    });
    // Not below an event after it.
    assert_found(bookmarkable, (Rule::Bookmarkable, "marked", 0, Some(14)), |story| {
        frames(story, MARKED, 0).insert(4, bookmark(14, None));
    });
    // At the event before it, or anywhere up to the next, is fine.
    for fine in [13, 19] {
        assert_fine(bookmarkable, |story| {
            let at = if fine == 13 { 4 } else { 5 };
            frames(story, MARKED, 0).insert(at, bookmark(fine, None));
        });
    }
}

#[test]
fn a_bookmark_that_nobody_allowed_is_found() {
    assert_found(bookmarkable, (Rule::Bookmarkable, "cluster", 0, Some(25)), |story| {
        frames(story, CLUSTER, 0).push(bookmark(25, None));
    });
}

#[test]
fn the_end_of_the_initial_state_is_the_first_frame_and_no_other() {
    let at = |place| (Rule::Bookmarkable, "marked", 0, Some(place));
    assert_found(bookmarkable, at(11), |story| drop(frames(story, MARKED, 0).remove(0)));
    assert_found(bookmarkable, at(10), |story| frames(story, MARKED, 0)[0] = bookmark(10, None));
    assert_found(bookmarkable, at(25), |story| frames(story, MARKED, 0)[9] = initial(25));
    assert_found(bookmarkable, (Rule::Bookmarkable, "shop", 1, Some(25)), |story| {
        frames(story, IN_SHOP, 1)[2] = initial(25);
    });
    // Who comes back is not told again.
    let comes_back = |story: &mut History, first: Frame| {
        let Transcript { sessions, .. } = &mut story.transcripts[MARKED];
        sessions.push(session(Start::After(25), vec![first]));
    };
    assert_fine(bookmarkable, |story| comes_back(story, bookmark(26, None)));
    assert_found(bookmarkable, (Rule::Bookmarkable, "marked", 1, Some(26)), |story| comes_back(story, initial(26)));
    // An error may come instead.
    assert_fine(bookmarkable, |story| *frames(story, MARKED, 0) = vec![error(410)]);
    assert_eq!(good().transcripts[MARKED].bookmarks, Bookmarks::WithInitialEvents);
}

// === Confined ===

#[test]
fn an_event_of_another_namespace_is_found() {
    // Attributed to the reader's namespace by mistake, and honestly labelled as another's.
    let mut stolen = events()[1].clone();
    stolen.namespace = SHOP.map(str::to_owned);
    assert_found(confined, (Rule::Confined, "shop", 0, Some(12)), |story| {
        frames(story, IN_SHOP, 0).insert(1, added(&in_shop(), 12, &stolen, None));
    });
    assert_found(confined, (Rule::Confined, "shop", 0, Some(12)), |story| {
        frames(story, IN_SHOP, 0).insert(1, shop_event(1, 12));
    });
    // Who reads all of them may see it, under its own name.
    assert_found(confined, (Rule::Confined, "everywhere", 0, Some(12)), |story| {
        frames(story, EVERYWHERE, 0)[1] = added(&Scope::AllNamespaces, 12, &stolen, None);
    });
}

#[test]
fn an_event_of_no_namespace_is_found() {
    let mut stolen = events()[2].clone();
    for (reader, name, at) in [(IN_SHOP, "shop", 1), (EVERYWHERE, "everywhere", 2)] {
        stolen.namespace = SHOP.map(str::to_owned);
        assert_found(confined, (Rule::Confined, name, 0, Some(13)), |story| {
            frames(story, reader, 0).insert(at, added(&in_shop(), 13, &stolen, None));
        });
        stolen.namespace = None;
        assert_found(confined, (Rule::Confined, name, 0, Some(13)), |story| {
            frames(story, reader, 0).insert(at, added(&in_shop(), 13, &stolen, None));
        });
    }
}

#[test]
fn a_namespace_on_events_is_found() {
    let Frame::Added(plain) = cluster_event(0, 11) else { panic!() };
    let line = std::str::from_utf8(plain.line()).unwrap().replace(r#""name":"event-11","#, r#""namespace":"shop","#);
    assert_found(confined, (Rule::Confined, "cluster", 0, Some(11)), |story| {
        frames(story, CLUSTER, 0)[0] = read(&line);
    });
}

#[test]
fn a_namespace_that_is_sent_as_another_ones_is_found_by_what_was_meant() {
    // The same frames, but the sender meant another namespace: a forged event that the server believed.
    let words = assert_found(confined, (Rule::Confined, "shop", 0, Some(11)), |story| {
        story.batches[0].events[0].namespace = BANK.map(str::to_owned);
    });
    assert!(words.contains("not the event id-0"), "{words}");
}
