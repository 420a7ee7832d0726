//! The reference page, `docs/configuration.md`, written from the table of keys.
//!
//! `UPDATE_DOCS=1 cargo test reference` writes the file anew; without it the test compares.

use std::fmt::Write as _;

use super::keys::{Default, KEYS, Key, Kind, ROUTE, SECTIONS, STATIC};

const HEAD: &str = "\
# Configuration

<!-- Written from the table in src/config/keys.rs; `UPDATE_DOCS=1 cargo test reference` writes it anew. -->

Every key can be given in four places, those of a `[[route]]` or a `[[static]]` in the file only. The stronger comes first:

1. a flag, for the keys that have one: `--slots 8`;
2. an environment variable: `LAYBY_SLOTS_COUNT=8`, lists with commas: `LAYBY_OUTBOUND_ALLOW=public,10.0.0.7`.
   An empty variable is an empty list, and for keys that take one value as good as none;
3. the file, TOML: the one after `--config`, else `layby.toml` in the current directory, if there is one;
4. the default.

Those of `[tracing]` may also come from OpenTelemetry's own variables, which give way to the file.

A stronger place replaces a list, it does not add to it. A list of one may be written without its brackets.
`workers.app`, `workers.link` and `workers.upstream` are one choice, of exactly one: a stronger place that
gives one of them overrides whichever a weaker one gives.

`layby check` prints every mistake at once, each with its place and what to write instead, or the
configuration in force with the place of every value; it takes the flags of `layby run` and `layby serve`.
An unknown key is a mistake, an unknown `LAYBY_*` variable a warning.

Sizes are whole numbers with `KiB`, `MiB`, `GiB` or `TiB`, or of bytes without a unit. Durations are whole
numbers with `ms`, `s`, `m` or `h`, always with the unit. Secrets are printed as `***`.

SIGHUP reads the configuration again. Keys marked *restart* keep their old value until the gateway is
started anew, and the log says so.
";

const ROUTES: &str = r#"
## `[[route]]`

What is special about some requests. There may be any number of such sections, in the file only:

```toml
[[route]]
path = "/upload"
methods = ["POST", "PUT"]
body = "lazy"
max_body = "5GiB"

[[route]]
path = "/upload/avatar"

[[route]]
path = "/live"
upstream = "unix:/run/live.sock"
connections = 200
```

A request takes one route, of those whose path, host and methods fit: the one with the longest path; of those with
the same path one with a host before one without, then one with methods before one without. What that route does not
say is as without a route; nothing is taken from a shorter path. Two routes for the same requests are a mistake.
"#;

const STATICS: &str = r#"
## `[[static]]`

Files that the gateway sends by itself, without a slot ([files.md](files.md)). There may be any number of such
sections, in the file only:

```toml
[[static]]
path = "/static"
root = "/srv/app/staticfiles"
immutable = "hashed"

[[static]]
path = "/protected"
root = "/srv/app/media"
internal = true
```

A request belongs to the one with the longest path. Two with the same path are a mistake.
"#;

/// The page as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for section in [""].iter().chain(SECTIONS) {
        let title = match *section {
            "" => "Top level".to_owned(),
            _ => format!("`[{section}]`"),
        };
        page += &format!("\n## {title}\n");
        for key in KEYS.iter().filter(|key| key.section() == *section) {
            page += &entry(key, true);
        }
    }
    page += ROUTES;
    for key in ROUTE {
        page += &entry(key, false);
    }
    page += STATICS;
    for key in STATIC {
        page += &entry(key, false);
    }
    page
}

/// `elsewhere`: also as a variable, and maybe as a flag.
fn entry(key: &Key, elsewhere: bool) -> String {
    let mut text = format!("\n### `{}`\n\n{}\n\n", key.name, key.doc);
    let mut line = |name: &str, value: &str| {
        writeln!(text, "- {name}: {value}").expect("writing to a string does not fail");
    };
    line("value", &describe(key));
    match key.default {
        Default::Value { text, because } => line(
            "default",
            &format!("`{}`; {because}", in_file(key, text, key.list)),
        ),
        Default::Unset(meaning) => line("default", &format!("not set: {meaning}")),
    }
    line(
        "example",
        &format!(
            "`{} = {}`",
            key.short(),
            in_file(key, key.example, key.list)
        ),
    );
    if elsewhere {
        let flag = key.flag.map(|flag| format!(", flag `{flag}`"));
        let variable = key.variable();
        line(
            "elsewhere",
            &format!("`{variable}`{}", flag.unwrap_or_default()),
        );
    }
    if key.restart {
        line("change", "*restart*");
    }
    text
}

fn describe(key: &Key) -> String {
    let one = match key.kind {
        Kind::Number => "whole number".to_owned(),
        Kind::Count => "whole number or `\"auto\"`".to_owned(),
        Kind::Size => "size".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Word(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`{word:?}`")).collect();
            super::mistakes::alternatives(&words)
        }
        Kind::Path => "path".to_owned(),
        Kind::Address => "IP address with port".to_owned(),
        Kind::Listen => "IP address with port, `unix:PATH`, `systemd` or `systemd:NAME`".to_owned(),
        Kind::Trusted => "address, network, or `unix`".to_owned(),
        Kind::App => "`module:object`".to_owned(),
        Kind::UnixSocket => "`unix:PATH`".to_owned(),
        Kind::Upstream => "`http://HOST:PORT` or `unix:PATH`".to_owned(),
        Kind::Dotted => "`module.attribute`".to_owned(),
        Kind::Allow => "`public`, name, `*.name`, address or network".to_owned(),
        Kind::Host => "host name or address".to_owned(),
        Kind::DatabaseUrl => "`postgres://` URL".to_owned(),
        Kind::RoutePath => "path, from `/` on".to_owned(),
        Kind::Method => "method, in capitals".to_owned(),
        Kind::Folder => "path, from `/` or `./` on".to_owned(),
        Kind::FileName => "name of a file".to_owned(),
        Kind::MediaType => "media type".to_owned(),
        Kind::HeaderValue => "value of a header".to_owned(),
        Kind::Header => "`NAME: VALUE`".to_owned(),
        Kind::Truth => "`true` or `false`".to_owned(),
        Kind::Ratio => "number, 0 to 1".to_owned(),
        Kind::HttpUrl => "`http://` or `https://` URL".to_owned(),
        Kind::Title => "text".to_owned(),
        Kind::SecretHeader => "`NAME: VALUE`, a secret".to_owned(),
        Kind::Attribute => "`NAME=VALUE`".to_owned(),
        Kind::SharedSecret => "text without blanks, a secret".to_owned(),
    };
    let list = if key.list { "list of: " } else { "" };
    match key.range {
        Some((low, high)) => format!("{list}{one}, {low} to {high}"),
        None => format!("{list}{one}"),
    }
}

/// A value of the table as the file has it.
fn in_file(key: &Key, text: &str, list: bool) -> String {
    let bare = match key.kind {
        Kind::Number | Kind::Count => text != "auto",
        kind => matches!(kind, Kind::Truth | Kind::Ratio),
    };
    match (list, bare) {
        (true, _) if text.is_empty() => "[]".to_owned(),
        (true, _) => format!("[{text:?}]"),
        (false, true) => text.to_owned(),
        (false, false) => format!("{text:?}"),
    }
}
