use audit_stream_api::audit::Event;

use super::*;

/// What each step is about, in a form that is too long for it to be left alone: a little, or so much that nothing else helps.
fn padded(step: usize, too_much: bool) -> String {
    let long = |text: &str, a_little: usize| text.repeat(if too_much { MAX_EVENT_BYTES } else { a_little });
    match step {
        0 => format!(r#""requestObject":{{"a":"{}"}},"responseObject":["#, long("b", 1)) + "7],",
        1 => format!(r#""requestURI":"/api/v1/namespaces/shop/pods?{}","#, long("q", 5000)),
        2 => format!(r#""userAgent":"{}","#, long("u", 2000)),
        3 => format!(
            r#""sourceIPs":[{}{}],"#,
            r#""10.9.9.9","#.repeat(if too_much { 100_000 } else { 1 }),
            addresses(100)
        ),
        4 => format!(r#""auditID":"{}","#, long("i", 300)),
        5 => format!(
            r#""responseStatus":{{"metadata":{{}},"status":"Failure","message":"{}","reason":"Forbidden","details":{{"name":"p"}},"code":403}},"#,
            long("m", 1)
        ),
        6 => format!(
            r#""annotations":{{"authorization.k8s.io/decision":"forbid","authorization.k8s.io/reason":"{}"}},"#,
            long("r", 1)
        ),
        7 => format!(r#""later":"{}","#, long("l", 1)),
        8 => {
            let user = |name| {
                let extra = long("e", 1);
                format!(r#"{{"username":"{name}","uid":"u","groups":["dev"],"extra":{{"k":["{extra}"]}}}}"#)
            };
            format!(r#""user":{},"impersonatedUser":{},"#, user("alice"), user("bob"))
        }
        _ => unreachable!("there are nine steps"),
    }
}

/// The last sixteen, one of which is `long` bytes.
fn addresses(long: usize) -> String {
    let mut addresses: Vec<_> = (0..15).map(|number| format!(r#""10.0.0.{number}""#)).collect();
    addresses.push(format!(r#""{}""#, "f".repeat(long)));
    addresses.join(",")
}

/// What a step leaves of either.
fn shortened(step: usize) -> String {
    let user = |name| format!(r#"{{"username":"{name}","uid":"u","groups":["dev"]}}"#);
    match step {
        0 | 7 => String::new(),
        1 => format!(r#""requestURI":"/api/v1/namespaces/shop/pods?{}","#, "q".repeat(4096)),
        2 => format!(r#""userAgent":"{}","#, "u".repeat(1024)),
        3 => format!(r#""sourceIPs":[{}],"#, addresses(64)),
        4 => format!(r#""auditID":"{}","#, "i".repeat(256)),
        5 => r#""responseStatus":{"metadata":{},"status":"Failure","reason":"Forbidden","code":403},"#.to_owned(),
        6 => r#""annotations":{"authorization.k8s.io/decision":"forbid"},"#.to_owned(),
        8 => format!(r#""user":{},"impersonatedUser":{},"#, user("alice"), user("bob")),
        _ => unreachable!("there are nine steps"),
    }
}

fn event(member: impl Fn(usize) -> String) -> String {
    let members: String = (0..STEPS.len()).map(member).collect();
    format!(
        r#"{{"level":"RequestResponse",{members}"stage":"ResponseComplete","verb":"get","objectRef":{{"resource":"pods","namespace":"shop","name":"p"}}}}"#
    )
}

fn marked(json: &str) -> String {
    json.replacen(r#""},"#, r#"","audit.k8s.io/truncated":"true"},"#, 1)
}

#[test]
fn padding_goes_in_order_and_only_as_far_as_needed() {
    for last in 0..STEPS.len() {
        let json = event(|step| padded(step, step == last));
        let expected = event(|step| {
            let member = if step <= last { shortened(step) } else { padded(step, false) };
            if step == 6 { marked(&member) } else { member }
        });
        assert_eq!(Excess::of(&json), Some(Excess::Size));
        let shorter = truncate(&json);
        assert_eq!(shorter, expected, "step {last}");
        assert_eq!(Excess::of(&shorter), None);
        Event::parse(&shorter).unwrap();
    }
}

#[test]
fn who_did_what_to_what_is_never_cut() {
    let long = "x".repeat(MAX_EVENT_BYTES);
    let whole = event(shortened);
    for (short, longer) in [
        ("alice", long.clone()),
        (r#""dev""#, vec![r#""dev""#; 300_000].join(",")),
        ("shop/pods", format!("shop/pods/{long}")),
        (r#""name":"p""#, format!(r#""name":"{long}""#)),
        (r#""verb":"get""#, format!(r#""verb":"{long}""#)),
    ] {
        let json = whole.replacen(short, &longer, 1);
        let shorter = truncate(&json);
        assert_eq!(Excess::of(&shorter), Some(Excess::Size));
        assert!(shorter == marked(&json), "{short}");
    }
}

#[test]
fn strings_are_cut_between_characters() {
    let text = format!("a{}", "ä".repeat(MAX_EVENT_BYTES));
    let json = event(|step| match step {
        1 => format!(r#""requestURI":"/?{text}","#),
        2 => format!(r#""userAgent":"{text}\n","#),
        _ => shortened(step),
    });
    let shorter = truncate(&json);
    let event = Event::parse(&shorter).unwrap();
    assert_eq!(*event.request_uri, format!("/?a{}", "ä".repeat(2047)));
    assert_eq!(*event.user_agent.unwrap(), format!("a{}", "ä".repeat(511)));
}

#[test]
fn null_and_absent_fields_are_no_obstacle() {
    let minimal = r#""level":"l","auditID":"a","stage":"s","requestURI":"/","verb":"get","user":{}"#;
    let nulls = r#","impersonatedUser":null,"sourceIPs":null,"userAgent":null,"objectRef":null,"annotations":null,"responseStatus":null"#;
    let later = format!(r#","later":"{}""#, "x".repeat(MAX_EVENT_BYTES));
    let mark = r#""annotations":{"audit.k8s.io/truncated":"true"}"#;
    assert_eq!(truncate(&format!("{{{minimal}{later}}}")), format!("{{{minimal},{mark}}}"));
    let expected = format!("{{{minimal}{}}}", nulls.replace(r#""annotations":null"#, mark));
    assert_eq!(truncate(&format!("{{{minimal}{nulls}{later}}}")), expected);
}

#[test]
fn the_mark_is_there_once_and_says_true() {
    for annotations in [
        r#"{"audit.k8s.io/truncated":"true"}"#,
        r#"{"audit.k8s.io/trunc\u0061ted":"false"}"#,
        r#"{ "audit.k8s.io/truncated" : "" }"#,
    ] {
        let json = event(|step| match step {
            6 => format!(r#""annotations":{annotations},"#),
            _ => padded(step, false),
        });
        assert!(truncate(&json).contains(r#""annotations":{"audit.k8s.io/truncated":"true"},"#), "{annotations}");
    }
}

#[test]
fn what_nests_deeper_than_go_reads_is_too_deep() {
    let with = |member: String| event(|step| if step == 7 { format!("{member},") } else { shortened(step) });
    let deep = |field: &str, levels: usize| with(format!(r#""{field}":{}{}"#, "[".repeat(levels), "]".repeat(levels)));
    // The event itself is a level.
    assert_eq!(Excess::of(&deep("later", MAX_DEPTH - 1)), None);
    assert_eq!(Excess::of(&deep("later", MAX_DEPTH)), Some(Excess::Depth));
    assert_eq!(Excess::of(&deep("later", 3_000_000)), Some(Excess::Depth), "more than one excess");
    let text = format!(r#""later":"{}\"{}""#, "[".repeat(30_000), "{".repeat(30_000));
    assert_eq!(Excess::of(&with(text)), None, "brackets inside a string are no depth");

    let without_bodies = event(|step| if step == 6 { marked(&shortened(6)) } else { shortened(step) });
    for body in ["requestObject", "responseObject"] {
        assert_eq!(truncate(&deep(body, 3_000_000)), without_bodies);
    }
    // Nothing but a body is taken out of an event that is short.
    assert_eq!(Excess::of(&truncate(&deep("later", MAX_DEPTH))), Some(Excess::Depth));
}
