//! `/version`: which build this is.
//!
//! The keys are upstream's, all of them mandatory there; what a Rust build has no answer to is empty.
//! Source: k8s.io/apimachinery `pkg/version/types.go`.

use std::env::consts;

use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Info {
    major: &'static str,
    minor: &'static str,
    git_version: &'static str,
    git_commit: &'static str,
    git_tree_state: &'static str,
    build_date: &'static str,
    go_version: &'static str,
    compiler: &'static str,
    platform: String,
}

pub(super) fn info() -> Info {
    Info {
        major: env!("CARGO_PKG_VERSION_MAJOR"),
        minor: env!("CARGO_PKG_VERSION_MINOR"),
        git_version: concat!("v", env!("CARGO_PKG_VERSION")),
        git_commit: "",
        git_tree_state: "",
        // What upstream writes where the build did not say: component-base `version/base.go`.
        build_date: "1970-01-01T00:00:00Z",
        go_version: "",
        compiler: "rustc",
        platform: format!("{}/{}", consts::OS, go_arch(consts::ARCH)),
    }
}

/// Go's name for an architecture, because that is what readers of `platform` know.
fn go_arch(arch: &'static str) -> &'static str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}
