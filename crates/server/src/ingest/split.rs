//! Splits the body of a webhook POST into its events, in one pass over the bytes.
//!
//! Each item is read into a struct that borrows from the body, and the place where the reader stopped is the item's end. Ignored
//! values cost no stack, so no depth of nesting can end the process.
//! It knows nothing of namespaces or readers.

use std::borrow::Cow;

use audit_stream_api::audit::Event;
use audit_stream_api::json::{Reader, Unexpected};

/// The versions whose lists are understood; kube-apiserver sends v1 alone since 1.24.
const API_VERSIONS: [&str; 3] = ["audit.k8s.io/v1", "audit.k8s.io/v1beta1", "audit.k8s.io/v1alpha1"];

/// One item of a list.
#[derive(Debug)]
pub enum Item<'e, 'a> {
    /// An event, and its bytes in the body.
    Event(&'e Event<'a>, &'a str),
    /// Well-formed JSON that is not an event.
    Malformed,
}

/// The body is not a list of audit events: not one of its items may be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not an audit.k8s.io EventList, near byte {near_byte}")]
pub struct NotAList {
    /// Roughly where it stops being one.
    near_byte: usize,
}

/// The text of a body.
///
/// kube-apiserver copies a client's patch into an event as it came, so that any client can put bytes into a batch that are not
/// UTF-8: those become U+FFFD, three bytes each, and nobody else's event is lost for them.
///
/// All of it is looked at, once, here: nobody looks into strings that are ignored, and they travel on to readers.
pub fn text(body: &[u8]) -> Cow<'_, str> {
    simdutf8::basic::from_utf8(body).map_or_else(|_| String::from_utf8_lossy(body), Cow::Borrowed)
}

/// Calls `each` for every item of the list, in order.
///
/// # Errors
/// If the text is not JSON, or not an `EventList`. `each` may have been called for items before the error.
pub fn split<'a>(text: &'a str, mut each: impl FnMut(Item<'_, 'a>)) -> Result<(), NotAList> {
    let mut reader = Reader::new(text);
    let mut is_list = (false, false);
    reader.object(|reader, key| match &*key {
        "kind" => reader.string().map(|kind| is_list.0 = &*kind == "EventList"),
        "apiVersion" => reader.string().map(|version| is_list.1 = API_VERSIONS.contains(&&*version)),
        // Go writes a nil slice as null.
        "items" => reader.optional(|reader| items(reader, &mut each)).map(drop),
        _ => reader.skip(),
    })?;
    reader.end()?;
    if is_list == (true, true) { Ok(()) } else { Err(reader.unexpected().into()) }
}

fn items<'a>(reader: &mut Reader<'a>, each: &mut impl FnMut(Item<'_, 'a>)) -> Result<(), Unexpected> {
    let mut event = Event::default();
    reader.list(|reader| {
        each(item(reader, &mut event)?);
        Ok(())
    })
}

/// Reads one item; an event into the place of `event`.
fn item<'e, 'a>(reader: &mut Reader<'a>, event: &'e mut Event<'a>) -> Result<Item<'e, 'a>, Unexpected> {
    let start = reader.start_of_token();
    if event.replace(reader).is_err() {
        // Well-formed or not? If so, the event alone is lost, and the reader goes on behind it.
        reader.go_back_to(start);
        reader.skip()?;
        return Ok(Item::Malformed);
    }
    Ok(Item::Event(event, reader.read_since(start)))
}

impl From<Unexpected> for NotAList {
    fn from(unexpected: Unexpected) -> Self {
        Self { near_byte: unexpected.near_byte }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, extra: &str) -> String {
        format!(
            r#"{{"level":"Metadata","auditID":"{id}","stage":"ResponseComplete","requestURI":"/","verb":"get","user":{{}}{extra}}}"#
        )
    }

    fn list(items: &[String]) -> String {
        format!(
            r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{}},"items":[{}]}}"#,
            items.join(",")
        )
    }

    /// Audit IDs of the events, `-` for what was malformed.
    fn ids(body: impl AsRef<[u8]>) -> Result<Vec<String>, NotAList> {
        let mut ids = Vec::new();
        split(&text(body.as_ref()), |item| {
            ids.push(match item {
                Item::Event(event, _) => event.audit_id.to_string(),
                Item::Malformed => "-".to_owned(),
            });
        })?;
        Ok(ids)
    }

    #[test]
    fn items_keep_their_bytes_and_order() {
        let items = [event("a", r#","x":[1, {"y":"}\"]"}]"#), event("b", "")];
        let body = list(&items);
        let mut seen = Vec::new();
        split(&body, |item| match item {
            Item::Event(_, bytes) => seen.push(bytes.to_owned()),
            other => panic!("{other:?}"),
        })
        .unwrap();
        assert_eq!(seen, items);
    }

    #[test]
    fn white_space_other_keys_order_and_null_are_tolerated() {
        let body = format!(
            " {{ \"items\" : [ {} , {} ] , \"apiVersion\":\"audit.k8s.io/v1beta1\",\n\"kind\":\"EventList\" }} \n",
            event("a", ""),
            event("b", "")
        );
        assert_eq!(ids(body).unwrap(), ["a", "b"]);
        assert_eq!(ids(r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":null}"#).unwrap(), [""; 0]);
        assert_eq!(ids(list(&[])).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_wrong_costs_itself_alone() {
        let wrong = ["7", "null", "{}", "[]", r#"{"level":5}"#];
        let mut items = vec![event("first", "")];
        items.extend(wrong.map(str::to_owned));
        // Without recursion: the stack has no room for so many calls.
        items.push(event("abyss", &format!(r#","requestObject":{}{}"#, "[".repeat(3_000_000), "]".repeat(3_000_000))));
        items.push(event("last", ""));
        assert_eq!(ids(list(&items)).unwrap(), ["first", "-", "-", "-", "-", "-", "abyss", "last"]);
    }

    #[test]
    fn a_body_that_is_not_a_list_is_refused_whole() {
        let good = list(&[event("a", "")]);
        let not_lists = [
            String::new(),
            "null".to_owned(),
            "{}".to_owned(),
            good.replace("EventList", "PodList"),
            good.replace("audit.k8s.io/v1", "v1"),
            format!("{good}x"),
            good.replace("]}", "]"),
            good.replace("]}", ",]}"),
            good.replace("\"get\"", "tru"),
            good.replace("\"get\"", "\"\\q\""),
            good.replace("\"get\"", "\"a\nb\""),
            good.replace("\"get\"", "\"get\",\"x\":01"),
            good[..good.len() - 30].to_owned(),
        ];
        for body in not_lists {
            assert!(ids(&body).is_err(), "{body}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_cost_nobody_an_event() {
        let body = list(&[event("before", ""), event("patched", r#","requestObject":"?""#), event("after", "")]);
        let mut not_utf8 = body.clone().into_bytes();
        not_utf8[body.find('?').unwrap()] = 0xff;
        assert_eq!(ids(&not_utf8).unwrap(), ["before", "patched", "after"]);
        assert!(text(&not_utf8).contains("\"requestObject\":\"\u{fffd}\""));
    }
}
