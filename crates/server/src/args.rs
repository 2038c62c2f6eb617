//! What was typed, and what it means: flags to a checked [`Config`].
//!
//! Upstream's spelling wherever upstream has the flag. Each flag is an environment variable too: `AUDIT_STREAM_` and its name.
//! Nothing is opened or asked here; a mistake is told with the name of the flag.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::Config;
use crate::authn::files::TrustFiles;
use crate::authn::front_proxy::Names;
use crate::authz::CacheTtl;
use crate::certs::{PairFiles, TlsMinVersion};
use crate::ingest::{self, batch};
use crate::view::Revealed;
use crate::watch;

/// Kubernetes audit events as a watch: an aggregated API server.
#[derive(Debug, Parser)]
#[command(name = "audit-stream", version, about, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve audit.k8s.io, fed by kube-apiserver's audit webhook.
    Serve(Box<ServeArgs>),
}

/// Flags of `audit-stream serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The IP address on which to serve the API.
    #[arg(long, env = "AUDIT_STREAM_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP")]
    bind_address: IpAddr,

    /// The port on which to serve the API.
    #[arg(long, env = "AUDIT_STREAM_SECURE_PORT", default_value_t = 6443, value_name = "PORT")]
    secure_port: u16,

    /// File with the serving certificate, PEM, leaf first.
    #[arg(long, env = "AUDIT_STREAM_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: PathBuf,

    /// File with the private key of --tls-cert-file, PEM.
    #[arg(long, env = "AUDIT_STREAM_TLS_PRIVATE_KEY_FILE", value_name = "FILE")]
    tls_private_key_file: PathBuf,

    /// Oldest TLS version that is spoken.
    #[arg(long, env = "AUDIT_STREAM_TLS_MIN_VERSION", default_value = "VersionTLS12", value_name = "VERSION")]
    tls_min_version: TlsMinVersion,

    /// File with the kubeconfig by which kube-apiserver is asked; in-cluster configuration if not given.
    #[arg(long, env = "AUDIT_STREAM_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// As --kubeconfig, for reviews of tokens and for reading extension-apiserver-authentication; defaults to --kubeconfig.
    #[arg(long, env = "AUDIT_STREAM_AUTHENTICATION_KUBECONFIG", value_name = "FILE")]
    authentication_kubeconfig: Option<PathBuf>,

    /// As --kubeconfig, for SubjectAccessReviews; defaults to --kubeconfig.
    #[arg(long, env = "AUDIT_STREAM_AUTHORIZATION_KUBECONFIG", value_name = "FILE")]
    authorization_kubeconfig: Option<PathBuf>,

    /// How long it is remembered whose a token is, or that it is nobody's.
    #[arg(
        long,
        env = "AUDIT_STREAM_AUTHENTICATION_TOKEN_WEBHOOK_CACHE_TTL",
        default_value = "10s",
        value_name = "DURATION"
    )]
    authentication_token_webhook_cache_ttl: GoDuration,

    /// File with the CAs that sign the client certificates of users, PEM; extension-apiserver-authentication's if not given.
    #[arg(long, env = "AUDIT_STREAM_CLIENT_CA_FILE", value_name = "FILE")]
    client_ca_file: Option<PathBuf>,

    /// File with the CAs that sign the front proxy's client certificate, PEM; extension-apiserver-authentication's, with all that goes with it, if not given.
    #[arg(long, env = "AUDIT_STREAM_REQUESTHEADER_CLIENT_CA_FILE", value_name = "FILE")]
    requestheader_client_ca_file: Option<PathBuf>,

    /// With --requestheader-client-ca-file: headers with the user's name, of which the first with a value counts; x-remote-user if not given.
    #[arg(
        long,
        env = "AUDIT_STREAM_REQUESTHEADER_USERNAME_HEADERS",
        value_delimiter = ',',
        requires = "requestheader_client_ca_file",
        value_name = "HEADER,…"
    )]
    requestheader_username_headers: Vec<String>,

    /// With --requestheader-client-ca-file: headers with the user's UID, of which the first with a value counts.
    #[arg(
        long,
        env = "AUDIT_STREAM_REQUESTHEADER_UID_HEADERS",
        value_delimiter = ',',
        requires = "requestheader_client_ca_file",
        value_name = "HEADER,…"
    )]
    requestheader_uid_headers: Vec<String>,

    /// With --requestheader-client-ca-file: headers with a group of the user's each; x-remote-group if not given.
    #[arg(
        long,
        env = "AUDIT_STREAM_REQUESTHEADER_GROUP_HEADERS",
        value_delimiter = ',',
        requires = "requestheader_client_ca_file",
        value_name = "HEADER,…"
    )]
    requestheader_group_headers: Vec<String>,

    /// With --requestheader-client-ca-file: what headers with something else about the user begin with; x-remote-extra- if not given.
    #[arg(
        long,
        env = "AUDIT_STREAM_REQUESTHEADER_EXTRA_HEADERS_PREFIX",
        value_delimiter = ',',
        requires = "requestheader_client_ca_file",
        value_name = "PREFIX,…"
    )]
    requestheader_extra_headers_prefix: Vec<String>,

    /// With --requestheader-client-ca-file: common names of which the front proxy's certificate must have one; any if not given.
    #[arg(
        long,
        env = "AUDIT_STREAM_REQUESTHEADER_ALLOWED_NAMES",
        value_delimiter = ',',
        requires = "requestheader_client_ca_file",
        value_name = "NAME,…"
    )]
    requestheader_allowed_names: Vec<String>,

    /// How long an allowed request is remembered.
    #[arg(
        long,
        env = "AUDIT_STREAM_AUTHORIZATION_WEBHOOK_CACHE_AUTHORIZED_TTL",
        default_value = "10s",
        value_name = "DURATION"
    )]
    authorization_webhook_cache_authorized_ttl: GoDuration,

    /// How long a denied request is remembered.
    #[arg(
        long,
        env = "AUDIT_STREAM_AUTHORIZATION_WEBHOOK_CACHE_UNAUTHORIZED_TTL",
        default_value = "10s",
        value_name = "DURATION"
    )]
    authorization_webhook_cache_unauthorized_ttl: GoDuration,

    /// Reviews of access and of tokens that kube-apiserver is asked for, a second.
    #[arg(long, env = "AUDIT_STREAM_REVIEW_QPS", default_value = "200", value_name = "COUNT")]
    review_qps: NonZeroU32,

    /// The IP address on which to take audit events.
    #[arg(long, env = "AUDIT_STREAM_WEBHOOK_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP")]
    webhook_bind_address: IpAddr,

    /// The port on which to take audit events.
    #[arg(long, env = "AUDIT_STREAM_WEBHOOK_PORT", default_value_t = 9443, value_name = "PORT")]
    webhook_port: u16,

    /// File with the CAs that sign the client certificates of kube-apiserver's audit webhook, PEM.
    #[arg(long, env = "AUDIT_STREAM_WEBHOOK_CLIENT_CA_FILE", value_name = "FILE")]
    webhook_client_ca_file: PathBuf,

    /// Common names or DNS names of which the webhook's client certificate must have one.
    #[arg(
        long,
        env = "AUDIT_STREAM_WEBHOOK_ALLOWED_NAMES",
        value_delimiter = ',',
        required = true,
        value_name = "NAME,…"
    )]
    webhook_allowed_names: Vec<String>,

    /// As --tls-cert-file, for the webhook; defaults to it.
    #[arg(
        long,
        env = "AUDIT_STREAM_WEBHOOK_TLS_CERT_FILE",
        requires = "webhook_tls_private_key_file",
        value_name = "FILE"
    )]
    webhook_tls_cert_file: Option<PathBuf>,

    /// As --tls-private-key-file, for the webhook; defaults to it.
    #[arg(
        long,
        env = "AUDIT_STREAM_WEBHOOK_TLS_PRIVATE_KEY_FILE",
        requires = "webhook_tls_cert_file",
        value_name = "FILE"
    )]
    webhook_tls_private_key_file: Option<PathBuf>,

    /// Largest body of one webhook request.
    #[arg(long, env = "AUDIT_STREAM_WEBHOOK_MAX_BODY_BYTES", default_value = "64Mi", value_name = "BYTES")]
    webhook_max_body_bytes: Bytes,

    /// Bodies of webhook requests that are being received, together.
    #[arg(long, env = "AUDIT_STREAM_WEBHOOK_MAX_INFLIGHT_BYTES", default_value = "128Mi", value_name = "BYTES")]
    webhook_max_inflight_bytes: Bytes,

    /// Events that are retained for slow and returning readers, by size; as much again, and 8Mi at least, may be on its way to readers.
    #[arg(long, env = "AUDIT_STREAM_RETAIN_BYTES", default_value = "128Mi", value_name = "BYTES")]
    retain_bytes: Bytes,

    /// Events that are retained for slow and returning readers, by age.
    #[arg(long, env = "AUDIT_STREAM_RETAIN_AGE", default_value = "15m", value_name = "DURATION")]
    retain_age: GoDuration,

    /// Whether a watch may ask for events that came before it, by sinceSeconds or tailLines.
    #[arg(long, env = "AUDIT_STREAM_REPLAY", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    replay: bool,

    /// Show readers of namespacedevents the UIDs of users.
    #[arg(long, env = "AUDIT_STREAM_NAMESPACED_USER_UID", default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    namespaced_user_uid: bool,

    /// Show readers of namespacedevents what the authenticator says of users, identifiers of credentials among it.
    #[arg(long, env = "AUDIT_STREAM_NAMESPACED_USER_EXTRA", default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    namespaced_user_extra: bool,

    /// Show readers of namespacedevents where requests come from, and let them select by it.
    #[arg(long, env = "AUDIT_STREAM_NAMESPACED_SOURCE_IPS", default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    namespaced_source_ips: bool,

    /// Show readers of namespacedevents by which binding and role a request was allowed.
    #[arg(long, env = "AUDIT_STREAM_NAMESPACED_AUTHORIZATION_REASON", default_value_t = false, action = ArgAction::Set, value_name = "BOOL")]
    namespaced_authorization_reason: bool,

    /// Watches that may be open at a time.
    #[arg(long, env = "AUDIT_STREAM_MAX_WATCHES", default_value_t = 10_000, value_name = "COUNT")]
    max_watches: u32,

    /// Watches that one user may have open at a time.
    #[arg(long, env = "AUDIT_STREAM_MAX_WATCHES_PER_USER", default_value_t = 20, value_name = "COUNT")]
    max_watches_per_user: u32,

    /// Watches of one namespace that may be open at a time.
    #[arg(long, env = "AUDIT_STREAM_MAX_WATCHES_PER_NAMESPACE", default_value_t = 200, value_name = "COUNT")]
    max_watches_per_namespace: u32,

    /// Different paths and parameters that the open watches of one user may have.
    #[arg(long, env = "AUDIT_STREAM_MAX_CLASSES_PER_USER", default_value_t = 20, value_name = "COUNT")]
    max_classes_per_user: u32,

    /// How long to go on serving after SIGTERM, not ready, until nobody is sent here any more.
    #[arg(long, env = "AUDIT_STREAM_SHUTDOWN_DELAY_DURATION", default_value = "10s", value_name = "DURATION")]
    shutdown_delay_duration: GoDuration,

    /// How long connections may take to end after that.
    #[arg(long, env = "AUDIT_STREAM_SHUTDOWN_GRACE_PERIOD", default_value = "30s", value_name = "DURATION")]
    shutdown_grace_period: GoDuration,

    /// Form of the log.
    #[arg(long, env = "AUDIT_STREAM_LOGGING_FORMAT", default_value = "text", value_name = "FORMAT")]
    logging_format: LoggingFormat,

    /// Verbosity of the log: up to 3 informs, 4 and 5 debug, more traces.
    #[arg(short, long = "v", env = "AUDIT_STREAM_V", default_value_t = 2, value_name = "LEVEL")]
    v: u8,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoggingFormat {
    /// A line for people.
    Text,
    /// An object a line.
    Json,
}

/// A duration as Go writes it: `10s`, `1m30s`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GoDuration(Duration);

/// A number of bytes as Kubernetes writes it: `1048576`, `64Mi`, `1G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bytes(u64);

impl ServeArgs {
    /// What the flags mean together.
    ///
    /// # Errors
    /// If they do not go together; the message names the flag.
    pub fn into_config(self) -> Result<Config> {
        let limits = self.watch_limits()?;
        let trust_files = self.trust_files()?;
        let serving = PairFiles { certificate: self.tls_cert_file, key: self.tls_private_key_file };
        let webhook = self.webhook_tls_cert_file.zip(self.webhook_tls_private_key_file);
        let webhook = webhook.map(|(certificate, key)| PairFiles { certificate, key });
        let (max_body, max_inflight) = (self.webhook_max_body_bytes.0, self.webhook_max_inflight_bytes.0);
        ensure!(
            (1..=batch::MAX_BODY_BYTES).contains(&max_body),
            "--webhook-max-body-bytes must be from 1 to {}",
            batch::MAX_BODY_BYTES
        );
        ensure!(
            max_inflight >= max_body,
            "--webhook-max-inflight-bytes ({max_inflight}) must not be less than --webhook-max-body-bytes ({max_body}): \
             a body of that size could never be received"
        );
        let blank = self.webhook_allowed_names.iter().any(|name| name.trim().is_empty());
        ensure!(!blank, "--webhook-allowed-names must not have an empty name");
        let retain_bytes = usize::try_from(self.retain_bytes.0).unwrap_or(usize::MAX);
        Ok(Config {
            address: SocketAddr::new(self.bind_address, self.secure_port),
            webhook_address: SocketAddr::new(self.webhook_bind_address, self.webhook_port),
            webhook_pair: webhook.unwrap_or_else(|| serving.clone()),
            pair: serving,
            tls_min_version: self.tls_min_version,
            authentication_kubeconfig: self.authentication_kubeconfig.or_else(|| self.kubeconfig.clone()),
            authorization_kubeconfig: self.authorization_kubeconfig.or(self.kubeconfig),
            trust_files,
            token_cache_ttl: self.authentication_token_webhook_cache_ttl.0,
            authorization_cache: CacheTtl {
                authorized: self.authorization_webhook_cache_authorized_ttl.0,
                unauthorized: self.authorization_webhook_cache_unauthorized_ttl.0,
            },
            review_qps: self.review_qps,
            webhook_client_ca_file: self.webhook_client_ca_file,
            ingest: ingest::Config {
                allowed_names: self.webhook_allowed_names,
                max_body_bytes: max_body,
                max_inflight_bytes: max_inflight,
            },
            retain: audit_stream_bus::Config { retain_bytes, retain_age: self.retain_age.0 },
            watch: watch::Config {
                limits,
                frame_bytes: retain_bytes.max(watch::MIN_FRAME_BYTES),
                replay: self.replay,
                revealed: Revealed {
                    user_uid: self.namespaced_user_uid,
                    user_extra: self.namespaced_user_extra,
                    source_ips: self.namespaced_source_ips,
                    authorization_reason: self.namespaced_authorization_reason,
                },
            },
            shutdown_delay: self.shutdown_delay_duration.0,
            shutdown_grace: self.shutdown_grace_period.0,
        })
    }

    fn trust_files(&self) -> Result<TrustFiles> {
        let list = |flag: &str, given: &[String], default: &[&str]| {
            ensure!(given.iter().all(|name| !name.trim().is_empty()), "--{flag} must not have an empty value");
            let default = || default.iter().map(ToString::to_string).collect();
            Ok(if given.is_empty() { default() } else { given.to_vec() })
        };
        // Upstream's defaults.
        let names = Names {
            allowed: list("requestheader-allowed-names", &self.requestheader_allowed_names, &[])?,
            username_headers: list(
                "requestheader-username-headers",
                &self.requestheader_username_headers,
                &["x-remote-user"],
            )?,
            uid_headers: list("requestheader-uid-headers", &self.requestheader_uid_headers, &[])?,
            group_headers: list("requestheader-group-headers", &self.requestheader_group_headers, &["x-remote-group"])?,
            extra_header_prefixes: list(
                "requestheader-extra-headers-prefix",
                &self.requestheader_extra_headers_prefix,
                &["x-remote-extra-"],
            )?,
        };
        let front_proxy = self.requestheader_client_ca_file.clone().map(|file| (file, names));
        Ok(TrustFiles { client_ca: self.client_ca_file.clone(), front_proxy })
    }

    fn watch_limits(&self) -> Result<watch::Limits> {
        let limit = |flag: &str, count: u32| {
            ensure!(count > 0, "--{flag} must not be 0");
            Ok(count as usize)
        };
        Ok(watch::Limits {
            watches: limit("max-watches", self.max_watches)?,
            per_user: limit("max-watches-per-user", self.max_watches_per_user)?,
            per_namespace: limit("max-watches-per-namespace", self.max_watches_per_namespace)?,
            classes_per_user: limit("max-classes-per-user", self.max_classes_per_user)?,
        })
    }

    /// How to log.
    pub fn logging(&self) -> (LoggingFormat, u8) {
        (self.logging_format, self.v)
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a duration such as 10s, 1m30s or 250ms");
        if text.is_empty() {
            return Err(wrong());
        }
        let duration: kube::core::Duration = text.parse().map_err(|_| wrong())?;
        if duration.is_negative() { Err(format!("\"{text}\" is negative")) } else { Ok(Self(duration.into())) }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
        let unit: u64 = match &text[digits.len()..] {
            "" => 1,
            "k" => 1000,
            "M" => 1000_u64.pow(2),
            "G" => 1000_u64.pow(3),
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            other => return Err(format!("\"{other}\" is no unit of bytes; use Ki, Mi, Gi, k, M, G or none")),
        };
        let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        number.map(Self).ok_or_else(|| format!("\"{text}\" is not a number of bytes such as 1048576 or 64Mi"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const NEEDED: [&str; 10] = [
        "audit-stream",
        "serve",
        "--tls-cert-file=a",
        "--tls-private-key-file=b",
        "--webhook-client-ca-file=c",
        "--webhook-allowed-names=x,y",
        "--bind-address=127.0.0.1",
        "--webhook-bind-address=::1",
        "--kubeconfig=k",
        "--authorization-kubeconfig=z",
    ];

    fn config(more: &[&str]) -> Result<Config> {
        let Command::Serve(args) = Cli::try_parse_from(NEEDED.iter().chain(more))?.command;
        args.into_config()
    }

    #[test]
    fn each_flag_reveals_what_it_names() {
        let revealed = |flag: &str| {
            let Revealed { user_uid, user_extra, source_ips, authorization_reason } =
                config(&[flag]).unwrap().watch.revealed;
            [user_uid, user_extra, source_ips, authorization_reason]
        };
        assert_eq!(revealed("--namespaced-user-uid=true"), [true, false, false, false]);
        assert_eq!(revealed("--namespaced-user-extra=true"), [false, true, false, false]);
        assert_eq!(revealed("--namespaced-source-ips=true"), [false, false, true, false]);
        assert_eq!(revealed("--namespaced-authorization-reason=true"), [false, false, false, true]);
        assert_eq!(revealed("--namespaced-source-ips=false"), [false; 4]);
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = config(&[]).unwrap();
        assert_eq!(config.address, "127.0.0.1:6443".parse().unwrap());
        assert_eq!(config.webhook_address, "[::1]:9443".parse().unwrap());
        assert_eq!(config.ingest.allowed_names, ["x", "y"]);
        assert_eq!(config.ingest.max_body_bytes, 64 << 20);
        assert_eq!(config.ingest.max_inflight_bytes, 128 << 20);
        assert_eq!(config.retain.retain_bytes, 128 << 20);
        assert_eq!(config.retain.retain_age, Duration::from_secs(900));
        assert!(config.watch.replay);
        assert_eq!(config.authorization_cache.unauthorized, Duration::from_secs(10));
        assert_eq!(config.token_cache_ttl, Duration::from_secs(10));
        assert_eq!(config.review_qps.get(), 200);
        assert_eq!((config.trust_files.client_ca, config.trust_files.front_proxy), (None, None));
        assert_eq!(config.authentication_kubeconfig, Some("k".into()));
        assert_eq!(config.authorization_kubeconfig, Some("z".into()));
        assert_eq!(config.webhook_pair.certificate, config.pair.certificate);
    }

    #[test]
    fn a_flag_that_is_true_by_default_can_be_turned_off() {
        assert!(!config(&["--replay=false"]).unwrap().watch.replay);
        assert!(config(&["--replay=true"]).unwrap().watch.replay);
    }

    #[test]
    fn the_front_proxys_headers_are_upstreams_where_only_its_ca_is_given() {
        let names = |more: &[&str]| {
            let flags = [&["--requestheader-client-ca-file=ca"][..], more].concat();
            config(&flags).unwrap().trust_files.front_proxy.unwrap().1
        };
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let default = Names {
            username_headers: words(&["x-remote-user"]),
            group_headers: words(&["x-remote-group"]),
            extra_header_prefixes: words(&["x-remote-extra-"]),
            ..Names::default()
        };
        assert_eq!(names(&[]), default);
        let given = ["--requestheader-username-headers=a,b", "--requestheader-allowed-names=proxy"];
        assert_eq!(
            names(&given),
            Names { username_headers: words(&["a", "b"]), allowed: words(&["proxy"]), ..default }
        );
    }

    #[test]
    fn mistakes_name_the_flag() {
        let mistakes: [(&[&str], &str); 13] = [
            (&["--webhook-max-body-bytes=1Gi"], "--webhook-max-body-bytes"),
            (&["--webhook-max-body-bytes=0"], "--webhook-max-body-bytes"),
            (&["--webhook-max-inflight-bytes=1Mi"], "--webhook-max-inflight-bytes (1048576)"),
            (&["--webhook-allowed-names=x,"], "--webhook-allowed-names"),
            (&["--max-watches=0"], "--max-watches"),
            (&["--retain-age=5"], "--retain-age"),
            (&["--replay=perhaps"], "--replay"),
            (&["--retain-bytes=5MB"], "\"MB\" is no unit"),
            (&["--webhook-tls-cert-file=x"], "--webhook-tls-private-key-file"),
            (&["--requestheader-allowed-names=x"], "--requestheader-client-ca-file"),
            (&["--requestheader-uid-headers=x"], "--requestheader-client-ca-file"),
            (
                &["--requestheader-client-ca-file=x", "--requestheader-group-headers=a,"],
                "--requestheader-group-headers",
            ),
            (&["--review-qps=0"], "--review-qps"),
        ];
        for (flags, expected) in mistakes {
            let error = config(flags).unwrap_err().to_string();
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
    }

    /// The table of docs/flags.md, from the definition above.
    fn documented() -> String {
        let mut table = "| flag | environment | default | meaning |\n|---|---|---|---|\n".to_owned();
        let serve = Cli::command().find_subcommand("serve").expect("it is defined").clone();
        for flag in serve.get_arguments().filter(|flag| flag.get_id() != "help") {
            let default = flag.get_default_values().first().map(|value| format!("`{}`", value.display()));
            let default = default.unwrap_or_else(|| if flag.is_required_set() { "required" } else { "" }.to_owned());
            let possible: Vec<_> =
                flag.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
            let possible =
                if possible.is_empty() { String::new() } else { format!(" One of {}.", possible.join(", ")) };
            table += &format!(
                "| `--{}` | `{}` | {default} | {}.{possible} |\n",
                flag.get_long().expect("every flag has a long name"),
                flag.get_env().expect("every flag is an environment variable").display(),
                flag.get_help().expect("every flag says what it is for"),
            );
        }
        table
    }

    #[test]
    fn the_documentation_is_the_definition() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/flags.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (head, old) = page.split_once("| flag |").expect("the page has the table");
        let tail = old.split_once("\n\n").map_or("", |(_, tail)| tail);
        let expected = format!("{head}{}\n{tail}", documented());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        assert_eq!(page, expected, "run this test with UPDATE_GOLDEN=1 and look at the difference");
    }

    #[test]
    fn units() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0).ok();
        assert_eq!(bytes("1048576"), Some(1 << 20));
        assert_eq!((bytes("64Mi"), bytes("1k"), bytes("2G")), (Some(64 << 20), Some(1000), Some(2_000_000_000)));
        assert_eq!((bytes(""), bytes("Mi"), bytes("-1"), bytes("99999999999Gi")), (None, None, None, None));
        let duration = |text: &str| text.parse::<GoDuration>().map(|duration| duration.0).ok();
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!((duration("-1s"), duration("1d"), duration("")), (None, None, None));
    }
}
