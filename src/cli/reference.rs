//! `docs/commands.md`, written from the command line itself.
//!
//! `UPDATE_DOCS=1 cargo test reference` writes the file anew; without it the test compares.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command, CommandFactory as _};

use super::CommandLine;

const INTRODUCTION: &str = "\
# Commands

<!-- Written from src/cli.rs; `UPDATE_DOCS=1 cargo test reference` writes it anew. -->

Every command of `layby`, and every flag. What a flag says goes before the environment, the
environment before the file, the file before the default; each of them has its key in the
[configuration](configuration.md).

| exit status | |
|---|---|
| 0 | a drain that was clean; a check that found no mistake; a gateway that is ready |
| 1 | a mistake in the configuration; a start that failed; a drain that had to cut something; a gateway that is not ready, or not there |
| 2 | wrong usage |

";

#[test]
fn the_reference_of_commands_agrees_with_the_command_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("docs/commands.md is writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/commands.md differs from the command line; run UPDATE_DOCS=1 cargo test reference"
    );
}

fn page() -> String {
    let mut line = CommandLine::command();
    line.build();
    let mut page = String::from(INTRODUCTION);
    for command in line.get_subcommands().filter(|it| it.get_name() != "help") {
        section(&mut page, command).expect("a String takes everything");
    }
    // One empty line between sections, none at the end.
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn section(page: &mut String, command: &Command) -> std::fmt::Result {
    let usage = command.clone().render_usage().to_string();
    let about = command.get_about().map(ToString::to_string);
    writeln!(page, "## `layby {}`\n", command.get_name())?;
    writeln!(page, "{}.\n", about.unwrap_or_default())?;
    writeln!(
        page,
        "```text\n{}\n```\n",
        usage.trim_start_matches("Usage: ")
    )?;
    writeln!(page, "| flag | |\n|---|---|")?;
    for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
        writeln!(page, "| `{}` | {} |", spelled(arg), meant(arg))?;
    }
    writeln!(page)
}

fn spelled(arg: &Arg) -> String {
    let value = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values())
        .map(|names| names.join(" "));
    match (arg.get_long(), value) {
        (Some(long), Some(value)) => format!("--{long} {value}"),
        (Some(long), None) => format!("--{long}"),
        (None, value) => value.unwrap_or_default(),
    }
}

fn meant(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let defaults = arg.get_default_values();
    if defaults.is_empty() || !arg.get_action().takes_values() {
        return help;
    }
    let defaults: Vec<_> = defaults.iter().map(|it| it.to_string_lossy()).collect();
    format!("{help} [default: {}]", defaults.join(", "))
}
