use proptest::prelude::*;

use super::*;
use crate::query::{QueryError, WatchOptions};

fn selector(query: &str) -> Selector {
    WatchOptions::parse(query, Resource::Events).unwrap_or_else(|error| panic!("{query}: {error:?}")).selector
}

fn fields(text: &str) -> Selector {
    FieldSelector::parse(text).unwrap().into()
}

/// An event, as the values of its fields; a field that is not there is empty.
#[derive(Debug, Clone, Default)]
struct Event(Vec<(Field, &'static str)>);

impl Event {
    fn values(&self, field: Field) -> Vec<&'static str> {
        let values: Vec<_> = self.0.iter().filter(|(key, _)| *key == field).map(|(_, value)| *value).collect();
        if values.is_empty() { vec![""] } else { values }
    }

    fn is_selected(&self, query: &str) -> bool {
        selector(query).matches(|field, value| self.values(field).contains(&value))
    }
}

#[test]
fn one_of_the_values_of_each_parameter_has_to_be_there() {
    let pods = Event(vec![
        (Field::Username, "alice,b"),
        (Field::ObjectResource, "pods"),
        (Field::Verb, "get"),
        (Field::Stage, "ResponseComplete"),
        (Field::MetadataNamespace, "shop"),
    ]);
    for selecting in [
        "",
        "verbs=get",
        "verb=get",
        "verbs=list&verb=get",
        "verbs=list,get,",
        "username=bob&username=alice,b",
        "resource=nodes,pods",
        "stage=Panic&stage=ResponseComplete",
        "namespace=shop",
        "namespace=%3Cnone%3E,shop",
        "apiGroup=apps,%3Ccore%3E",
        "verbs=get,list&resource=pods,nodes&fieldSelector=stage!%3DPanic",
        "labelSelector=!app",
    ] {
        assert!(pods.is_selected(selecting), "{selecting}");
    }
    for other in [
        "verbs=list",
        "verbs=Get",
        "username=alice",
        "username=alice,bob",
        "resource=nodes,pod",
        "namespace=bank",
        "namespace=%3Cnone%3E",
        "apiGroup=apps",
        "verbs=get,list&resource=nodes,secrets",
        "verbs=get,list&fieldSelector=verb!%3Dget",
        "labelSelector=app",
    ] {
        assert!(!pods.is_selected(other), "{other}");
    }
}

#[test]
fn the_core_group_is_that_of_resources_only() {
    let of = |group, resource| Event(vec![(Field::ObjectApiGroup, group), (Field::ObjectResource, resource)]);
    let [core, apps, batch, no_resource] = [of("", "pods"), of("apps", "deployments"), of("batch", "jobs"), of("", "")];
    let selected = |query: &str| [&core, &apps, &batch, &no_resource].map(|event| event.is_selected(query));
    assert_eq!(selected("apiGroup=%3Ccore%3E"), [true, false, false, false]);
    assert_eq!(selected("apiGroup=%3Ccore%3E&apiGroup=apps"), [true, true, false, false]);
    assert_eq!(selected("apiGroup=apps,batch"), [false, true, true, false]);
    assert_eq!(selected("apiGroup="), [true; 4]);
}

#[test]
fn all_groups_have_to_be_there() {
    let event = Event(vec![(Field::Groups, "dev"), (Field::Groups, "ops,qa")]);
    assert!(event.is_selected("group=dev&group=ops,qa"));
    assert!(!event.is_selected("group=dev&group=ops"));
}

#[test]
fn selections_that_select_the_same_are_equal() {
    for (one, other) in [
        ("verbs=get&verbs=list", "verb=list,get,list"),
        ("verbs=get", "fieldSelector=verb%3Dget"),
        ("group=dev&group=ops", "group=ops&fieldSelector=user.groups%3Ddev"),
        ("resource=pods&verbs=a,b", "verbs=b,a&resource=pods,pods"),
        ("namespace=%3Cnone%3E", "fieldSelector=metadata.namespace%3D"),
        ("apiGroup=%3Ccore%3E", "fieldSelector=objectRef.apiGroup%3D,objectRef.resource!%3D"),
        ("labelSelector=!a,b!%3Dc", ""),
        ("labelSelector=a", "labelSelector=b%3Dc"),
    ] {
        assert_eq!(selector(one), selector(other), "{one} {other}");
    }
    assert_ne!(selector("verbs=get,list"), selector("verbs=get"));
    assert_ne!(selector("labelSelector=a"), selector(""));
    assert_eq!((selector("verbs=get"), selector("labelSelector=!a")), (fields("verb=get"), Selector::default()));
}

#[test]
fn nothing_and_everything() {
    let of = |query: &str| (selector(query).is_empty(), selector(query).selects_nothing());
    assert_eq!((of(""), of("labelSelector=a"), of("verbs=get,list")), ((true, false), (false, true), (false, false)));
    assert!(!Event::default().is_selected("labelSelector=a"));
}

#[test]
fn every_field_that_is_looked_at_is_known() {
    let looked_at = |query: &str| selector(query).fields().collect::<BTreeSet<_>>();
    let all = "username=a&group=a&apiGroup=a&resource=a&verbs=a&stage=a&namespace=a";
    let expected = [
        Field::Username,
        Field::Groups,
        Field::ObjectApiGroup,
        Field::ObjectResource,
        Field::Verb,
        Field::Stage,
        Field::MetadataNamespace,
    ];
    assert_eq!(looked_at(all), expected.into());
    assert_eq!(looked_at(&all.replace("=a", "=a,b")), expected.into());
    assert_eq!(looked_at("apiGroup=%3Ccore%3E,a"), [Field::ObjectApiGroup, Field::ObjectResource].into());
    assert_eq!(looked_at("fieldSelector=sourceIPs!%3Dx"), [Field::SourceIps].into());
    assert_eq!(looked_at("labelSelector=a&verbs=,"), [].into());
}

#[test]
fn the_bytes_of_values_are_bounded_together() {
    let refused = |length: usize| {
        let (half, rest) = ("x".repeat(length / 2), "y".repeat(length - length / 2));
        WatchOptions::parse(&format!("username={half}&fieldSelector=userAgent!%3D{rest}"), Resource::Events).err()
    };
    assert_eq!(refused(MAX_VALUE_BYTES), None);
    assert_eq!(refused(MAX_VALUE_BYTES + 1), Some(QueryError::Selector(SelectorError::TooLong)));
}

#[test]
fn terms_and_values_are_bounded_together() {
    let values = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let half = MAX_TERMS / 2;
    let terms = (0..half).map(|n| format!("verb!%3D{n}")).collect::<Vec<_>>().join(",");
    let groups: String = (0..half).map(|n| format!("&group={n}")).collect();
    let is_refused = |query: &str| {
        let options = WatchOptions::parse(query, Resource::Events);
        options.is_err_and(|error| error == QueryError::Selector(SelectorError::TooManyTerms))
    };
    for (query, more) in [
        (format!("verbs={}", values(MAX_TERMS)), "&verb=x"),
        (format!("fieldSelector={terms}&verbs={}", values(half)), "&stage=x"),
        (format!("fieldSelector={terms}{groups}"), "&group=x"),
        (format!("namespace={}&resource={}", values(half), values(half)), "&username=x"),
    ] {
        assert!(!is_refused(&query), "{query}");
        assert!(is_refused(&format!("{query}{more}")), "{query}{more}");
        assert!(!is_refused(&format!("{query}&{query}")), "{query} twice is the same");
    }
}

/// A parameter with a value, and what that asks of an event: the rules once more, without any of the above.
fn naive(event: &Event, pairs: &[(&str, &str)]) -> bool {
    let values = |name: &[&str], lists: bool| -> Vec<&str> {
        let given = pairs.iter().filter(|(key, _)| name.contains(key));
        let split = given.flat_map(|(_, value)| if lists { value.split(',').collect() } else { vec![*value] });
        split.filter(|value| !value.is_empty()).collect()
    };
    let one = |field| event.values(field)[0];
    let any = |names: &[&str], lists, field| {
        let values = values(names, lists);
        values.is_empty() || values.contains(&one(field))
    };
    let api_groups = values(&["apiGroup"], true);
    let of_api_group = |group: &&str| match *group {
        "<core>" => one(Field::ObjectApiGroup).is_empty() && !one(Field::ObjectResource).is_empty(),
        group => one(Field::ObjectApiGroup) == group,
    };
    let namespaces = values(&["namespace"], true);
    let of_namespace =
        |namespace: &&str| one(Field::MetadataNamespace) == if *namespace == "<none>" { "" } else { namespace };
    any(&["username"], false, Field::Username)
        && any(&["verbs", "verb"], true, Field::Verb)
        && any(&["resource"], true, Field::ObjectResource)
        && any(&["stage"], true, Field::Stage)
        && values(&["group"], false).iter().all(|group| event.values(Field::Groups).contains(group))
        && (api_groups.is_empty() || api_groups.iter().any(of_api_group))
        && (namespaces.is_empty() || namespaces.iter().any(of_namespace))
}

/// Few values, so that they meet.
const VALUES: [&str; 7] = ["", "a", "b", "a,b", "<core>", "<none>", "a,<core>,<none>"];

fn event() -> impl Strategy<Value = Event> {
    let fields = [
        Field::Username,
        Field::Groups,
        Field::Groups,
        Field::ObjectApiGroup,
        Field::ObjectResource,
        Field::Verb,
        Field::Stage,
        Field::MetadataNamespace,
    ];
    let values = proptest::collection::vec(prop::sample::select(vec!["", "a", "b", "a,b"]), fields.len());
    values.prop_map(move |values| Event(fields.into_iter().zip(values).collect()))
}

fn parameters() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let names = ["username", "group", "apiGroup", "resource", "verbs", "verb", "stage", "namespace", "limit"];
    let pair = (prop::sample::select(names.to_vec()), prop::sample::select(VALUES.to_vec()));
    proptest::collection::vec(pair, 0..8)
}

proptest! {
    #[test]
    fn a_verdict_is_that_of_the_rules(event in event(), pairs in parameters()) {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
        prop_assert_eq!(event.is_selected(&query), naive(&event, &pairs));
    }

    #[test]
    fn no_query_makes_a_panic_and_none_is_over_the_bound(
        query in "((fieldSelector|labelSelector|verbs?|namespace|apiGroup|group|tailLines|x)=([a-z.=!,()<> %\\\\$-]|in|é){0,12}&){0,5}"
    ) {
        if let Ok(options) = WatchOptions::parse(&query, Resource::Events) {
            prop_assert!(options.selector.fields().count() <= MAX_TERMS);
            options.selector.matches(|_, value| value.is_empty());
        }
        let _ = crate::label_selector::selects_unlabelled(&query);
    }
}
