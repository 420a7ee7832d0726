//! The command line: which command, and where its configuration comes from.
//!
//! Only the shape is judged here (unknown flags, too many arguments: exit 2, by clap). What
//! the flags say is checked with all other sources of the configuration.

#[cfg(test)]
mod reference;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{self, Config, Loaded, Mistakes, Role, Sources};
use crate::tools::out::{complain, say};
use crate::tools::{advise, health, top};

/// What was asked for.
#[derive(Debug)]
pub struct Invocation {
    pub command: Command,
    pub sources: Sources,
    /// Workers are to be replaced when the application's files change.
    pub reload: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Run,
    Serve,
    Check,
    Advise { time: Duration },
    Top { once: bool },
    Health,
}

/// A sidecar gateway that keeps worker threads and database connections free while requests
/// wait on other services.
#[derive(Debug, Parser)]
#[command(name = "layby", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Gateway and supervised Python workers in one go
    Run {
        #[command(flatten)]
        app: AppFlags,
        /// Replace the workers when a file of the application changes; for development
        #[arg(long)]
        reload: bool,
        #[command(flatten)]
        common: CommonFlags,
    },
    /// Gateway alone: workers connect to it, or it proxies to an HTTP upstream
    Serve {
        #[command(flatten)]
        upstream: UpstreamFlags,
        #[command(flatten)]
        common: CommonFlags,
    },
    /// Print every mistake in the configuration, or what is in force
    Check {
        #[command(flatten)]
        app: AppFlags,
        #[command(flatten)]
        upstream: UpstreamFlags,
        #[command(flatten)]
        common: CommonFlags,
    },
    /// Show a running gateway in the terminal: slots, queue, parked and slow requests
    Top {
        #[command(flatten)]
        gateway: GatewayFlags,
        /// Print one plain table, for pipes and files
        #[arg(long)]
        once: bool,
    },
    /// Watch a running gateway, and say how many slots its traffic needs, and why
    Advise {
        #[command(flatten)]
        gateway: GatewayFlags,
        /// How long to watch: 30s, 10m
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = config::duration)]
        time: Duration,
    },
    /// Exit status 0 if a running gateway is ready, else 1; for health checks of containers
    Health {
        #[command(flatten)]
        gateway: GatewayFlags,
    },
}

/// Which gateway is asked.
#[derive(Debug, Args)]
struct GatewayFlags {
    /// Configuration file, which says where the admin listener is [default: layby.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its admin listener [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
}

#[derive(Debug, Args)]
struct CommonFlags {
    /// Configuration file [default: layby.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect: ADDRESS:PORT or unix:PATH; may be repeated [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Metrics, health and status [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Worker threads, each with its one database connection, or auto [default: 8]
    #[arg(long, value_name = "N")]
    slots: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Debug, Args)]
struct AppFlags {
    /// The application, module:object; without an object it is application [default: workers.app]
    #[arg(value_name = "APP")]
    app: Option<String>,
    /// Worker processes that share the slots [default: min(cores, max(1, slots / 4))]
    #[arg(long, value_name = "P")]
    processes: Option<String>,
    /// auto, coroutine, greenlet or wsgi [default: auto]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// The interpreter [default: the active virtual environment's, else python3]
    #[arg(long, value_name = "FILE")]
    python: Option<String>,
}

#[derive(Debug, Args)]
struct UpstreamFlags {
    /// Socket that workers connect to: unix:PATH
    #[arg(long, value_name = "SOCKET", conflicts_with = "upstream")]
    link: Option<String>,
    /// HTTP application server: http://HOST:PORT or unix:PATH
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
}

/// Reads the command line and takes the environment as it is now. Ends the process with
/// status 2 on wrong usage, and with 0 after `--help` and `--version`.
#[must_use]
pub fn parse() -> Invocation {
    let line = CommandLine::try_parse();
    let mut invocation = invocation(line.unwrap_or_else(|error| hinted(error).exit()));
    invocation.sources.env = std::env::vars_os().collect();
    invocation
}

impl Invocation {
    /// The configuration.
    ///
    /// # Errors
    ///
    /// The status to end with, once every mistake is on standard error: 2 if the command line
    /// alone is to blame, else 1.
    pub fn load(&self) -> Result<Loaded, ExitCode> {
        Config::load(&self.sources).map_err(|mistakes| refused(&mistakes))
    }

    /// `layby check`: every mistake on standard error and status 1, or the configuration in
    /// force on standard output.
    #[must_use]
    pub fn check(&self) -> ExitCode {
        match Config::load(&self.sources) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    complain(format_args!("warning: {warning}"));
                }
                say(&format!("configuration is valid\n\n{}", loaded.effective))
            }
            Err(mistakes) => {
                complain(mistakes);
                ExitCode::FAILURE
            }
        }
    }
}

impl Invocation {
    /// `layby top`.
    #[must_use]
    pub fn top(&self, once: bool) -> ExitCode {
        match Config::admin(&self.sources) {
            Ok(admin) => top::run(admin, once),
            Err(mistakes) => refused(&mistakes),
        }
    }

    /// `layby advise`.
    #[must_use]
    pub fn advise(&self, time: Duration) -> ExitCode {
        match Config::admin(&self.sources) {
            Ok(admin) => advise::run(admin, time),
            Err(mistakes) => refused(&mistakes),
        }
    }

    /// `layby health`.
    #[must_use]
    pub fn health(&self) -> ExitCode {
        match Config::admin(&self.sources) {
            Ok(admin) => health::run(admin),
            Err(mistakes) if mistakes.are_wrong_usage() => refused(&mistakes),
            // A gateway is not ill because somebody has spoilt its file since it started.
            Err(mistakes) => {
                complain(mistakes);
                health::run(Config::default_admin())
            }
        }
    }
}

/// The status to end with, once they are on standard error: 2 if the command line alone is to blame.
fn refused(mistakes: &Mistakes) -> ExitCode {
    complain(mistakes);
    ExitCode::from(if mistakes.are_wrong_usage() { 2 } else { 1 })
}

/// Says of a flag that the command does not know which commands do.
fn hinted(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = argument.split(['=', ' ']).next().unwrap_or_default();
    let line = CommandLine::command();
    let takes = |command: &&clap::Command| {
        let mut arguments = command.get_arguments().filter_map(clap::Arg::get_long);
        flag.strip_prefix("--")
            .is_some_and(|flag| arguments.any(|known| known == flag))
    };
    let commands = line.get_subcommands().filter(takes);
    let commands: Vec<_> = commands
        .map(|command| format!("`layby {}`", command.get_name()))
        .collect();
    if error.kind() == ErrorKind::UnknownArgument && !commands.is_empty() {
        let hint = format!("{flag} is for {}", commands.join(" and "));
        let hint = ContextValue::StyledStrs(vec![hint.into()]);
        error.insert(ContextKind::Suggested, hint);
        error.remove(ContextKind::SuggestedArg);
    }
    error
}

fn invocation(line: CommandLine) -> Invocation {
    let reload = matches!(line.command, Subcommands::Run { reload: true, .. });
    let (command, role, app, upstream, common) = match line.command {
        Subcommands::Run { app, common, .. } => (Command::Run, Role::Run, Some(app), None, common),
        Subcommands::Serve { upstream, common } => {
            (Command::Serve, Role::Serve, None, Some(upstream), common)
        }
        Subcommands::Check {
            app,
            upstream,
            common,
        } => (Command::Check, Role::Any, Some(app), Some(upstream), common),
        Subcommands::Top { gateway, once } => return beside(gateway, Command::Top { once }),
        Subcommands::Advise { gateway, time } => return beside(gateway, Command::Advise { time }),
        Subcommands::Health { gateway } => return beside(gateway, Command::Health),
    };
    let mut flags = vec![
        ("listen", common.listen),
        ("admin", common.admin.into_iter().collect()),
        ("slots.count", common.slots.into_iter().collect()),
        ("log_format", common.log_format.into_iter().collect()),
    ];
    if let Some(app) = app {
        flags.extend([
            ("workers.app", app.app.into_iter().collect()),
            ("workers.processes", app.processes.into_iter().collect()),
            ("workers.mode", app.mode.into_iter().collect()),
            ("workers.python", app.python.into_iter().collect()),
        ]);
    }
    if let Some(upstream) = upstream {
        flags.extend([
            ("workers.link", upstream.link.into_iter().collect()),
            ("workers.upstream", upstream.upstream.into_iter().collect()),
        ]);
    }
    flags.retain(|(_, values): &(_, Vec<String>)| !values.is_empty());
    Invocation {
        command,
        sources: Sources {
            file: common.config,
            env: Vec::new(),
            flags,
            role,
        },
        reload,
    }
}

/// A command that asks a running gateway, and needs to know no more than where that is.
fn beside(gateway: GatewayFlags, command: Command) -> Invocation {
    let flags = gateway.admin.map(|admin| ("admin", vec![admin]));
    Invocation {
        command,
        sources: Sources {
            file: gateway.config,
            flags: flags.into_iter().collect(),
            ..Sources::default()
        },
        reload: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Invocation {
        let words = line.split_whitespace();
        invocation(CommandLine::try_parse_from(words).expect("the line is right usage"))
    }

    fn usage_error(line: &str) -> i32 {
        let words = line.split_whitespace();
        let error = CommandLine::try_parse_from(words).expect_err("the line is wrong usage");
        error.exit_code()
    }

    fn configured(line: &str) -> Config {
        Config::load(&parsed(line).sources)
            .expect("the flags are right")
            .config
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn run_takes_every_flag_of_the_contract() {
        let line = "layby run mysite.wsgi --listen 127.0.0.1:0 --listen unix:/tmp/l.sock --admin 127.0.0.1:7000 \
                    --slots 6 --processes 3 --mode wsgi --python /usr/bin/python3 --log-format json";
        assert_eq!(parsed(line).command, Command::Run);
        let config = configured(line);
        let expected = Config::from_toml(
            r#"
            listen = ["127.0.0.1:0", "unix:/tmp/l.sock"]
            admin = "127.0.0.1:7000"
            log_format = "json"
            slots.count = 6
            [workers]
            app = "mysite.wsgi:application"
            processes = 3
            mode = "wsgi"
            python = "/usr/bin/python3"
            "#,
        );
        assert_eq!(config, expected.expect("the text is right").config);
    }

    #[test]
    fn only_run_reloads_and_only_if_asked() {
        assert!(parsed("layby run mysite.wsgi --reload").reload);
        assert!(!parsed("layby run mysite.wsgi").reload);
    }

    #[test]
    fn serve_takes_a_link_or_an_upstream() {
        let link = configured("layby serve --link unix:/run/link.sock --slots 2");
        let upstream = configured("layby serve --upstream http://127.0.0.1:9000");
        assert_eq!(
            link.changes_needing_restart(&upstream),
            ["slots.count", "workers.upstream"]
        );
        assert_eq!(
            usage_error("layby serve --link unix:/a --upstream unix:/b"),
            2
        );
    }

    #[test]
    fn advise_watches_for_a_time() {
        let time = |seconds| Command::Advise {
            time: Duration::from_secs(seconds),
        };
        assert_eq!(parsed("layby advise").command, time(30));
        let line = "layby advise --admin 127.0.0.1:7000 --time 2m";
        assert_eq!(parsed(line).command, time(120));
        assert_eq!(usage_error("layby advise --time soon"), 2);
    }

    #[test]
    fn the_admin_listener_is_found_as_the_gateway_itself_finds_it() {
        let admin = |line: &str, file: &str, env: &[(&str, &str)]| {
            let mut sources = parsed(line).sources;
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("layby.toml");
            std::fs::write(&path, file).expect("it can be written");
            sources.file = Some(path);
            sources.env = env
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect();
            Config::admin(&sources).map(|admin| admin.to_string())
        };
        // The file alone may be no whole configuration, or one of another version.
        let file = "admin = \"0.0.0.0:7001\"\nslots.of_tomorrow = 1";
        for command in ["top", "advise", "health"] {
            let found = |flags: &str, env| {
                let line = format!("layby {command} {flags}");
                admin(&line, file, env).expect("it is there")
            };
            assert_eq!(found("", &[]), "127.0.0.1:7001");
            assert_eq!(found("", &[("LAYBY_ADMIN", "[::]:7002")]), "[::1]:7002");
            assert_eq!(found("--admin 10.0.0.7:7003", &[]), "10.0.0.7:7003");
        }
        assert_eq!(
            admin("layby top", "", &[]).expect("the default"),
            "127.0.0.1:9180"
        );
        assert_eq!(Config::default_admin().to_string(), "127.0.0.1:9180");
        let spoilt = admin("layby health --admin 10.0.0.7:7003", "[slots", &[]);
        assert_eq!(spoilt.expect("the flag says it"), "10.0.0.7:7003");
        let mistakes = admin("layby top --admin here", "", &[]).expect_err("it is none");
        assert!(mistakes.are_wrong_usage());
        assert!(admin("layby top", "admin = ", &[]).is_err());
        assert_eq!(
            parsed("layby top --once").command,
            Command::Top { once: true }
        );
    }

    #[test]
    fn health_takes_its_address_as_a_flag() {
        assert_eq!(
            parsed("layby health --admin [::1]:7000").command,
            Command::Health
        );
        assert_eq!(usage_error("layby health 127.0.0.1:9180"), 2);
    }

    #[test]
    fn a_flag_of_another_command_is_told_from_one_of_none() {
        let said = |line: &str| {
            let error = CommandLine::try_parse_from(line.split(' ')).expect_err("it is unknown");
            hinted(error).to_string()
        };
        let processes = said("layby serve --processes 2");
        assert!(
            processes.contains("--processes is for `layby run` and `layby check`"),
            "{processes}"
        );
        let upstream = said("layby run --upstream=unix:/a");
        assert!(
            upstream.contains("--upstream is for `layby serve` and `layby check`"),
            "{upstream}"
        );
        assert!(!said("layby run --proceses 2").contains("is for"));
    }

    #[test]
    fn wrong_usage_ends_with_status_2_and_help_with_0() {
        for line in [
            "layby",
            "layby fly",
            "layby run a b",
            "layby run --upstream http://127.0.0.1:9000",
            "layby serve mysite.wsgi",
            "layby serve --link unix:/a --reload",
            "layby run --slots",
        ] {
            assert_eq!(usage_error(line), 2, "{line}");
        }
        assert_eq!(usage_error("layby --version"), 0);
        assert_eq!(usage_error("layby run --help"), 0);
    }

    #[test]
    fn a_wrong_value_of_a_flag_is_wrong_usage_only_if_nothing_else_is_wrong() {
        let mut invocation = parsed("layby run mysite.wsgi --slots 0 --mode fast");
        let mistakes = Config::load(&invocation.sources).expect_err("two flags are wrong");
        assert_eq!(
            mistakes.to_string(),
            "--mode: fast is not one of the values; write auto, coroutine, greenlet or wsgi\n\
             --slots: 0 is too small; write 1 to 1024"
        );
        assert!(mistakes.are_wrong_usage());

        invocation.sources.env = vec![("LAYBY_MAX_BODY".into(), "much".into())];
        let mistakes = Config::load(&invocation.sources).expect_err("a variable is wrong too");
        assert!(!mistakes.are_wrong_usage());
    }
}
