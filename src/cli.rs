//! The command line: which command, and where its configuration comes from.
//!
//! Only the shape is judged here (unknown flags, too many arguments: exit 2, by clap). What
//! the flags say is checked with all other sources of the configuration.

#[cfg(test)]
mod reference;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Loaded, Role, Sources};
use crate::tools::top;

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
    Advise { admin: SocketAddr, time: Duration },
    Top { once: bool },
    Health { admin: SocketAddr },
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
        /// Configuration file, which says where the admin listener is [default: layby.toml, if there is one]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Its admin listener [default: 127.0.0.1:9180]
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// Print one plain table, for pipes and files
        #[arg(long)]
        once: bool,
    },
    /// Watch a running gateway, and say how many slots its traffic needs, and why
    Advise {
        /// Its admin listener
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9180")]
        admin: SocketAddr,
        /// How long to watch: 30s, 10m
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = config::duration)]
        time: Duration,
    },
    /// Exit status 0 if a running gateway is ready, else 1; for health checks of containers
    Health {
        /// Its admin listener
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9180")]
        admin: SocketAddr,
    },
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
    let mut invocation = invocation(CommandLine::parse());
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
        Config::load(&self.sources).map_err(|mistakes| {
            eprintln!("{mistakes}");
            ExitCode::from(if mistakes.are_wrong_usage() { 2 } else { 1 })
        })
    }

    /// `layby check`: every mistake on standard error and status 1, or the configuration in
    /// force on standard output.
    #[must_use]
    pub fn check(&self) -> ExitCode {
        match Config::load(&self.sources) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                print!("configuration is valid\n\n{}", loaded.effective);
                ExitCode::SUCCESS
            }
            Err(mistakes) => {
                eprintln!("{mistakes}");
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
            Err(mistakes) => {
                eprintln!("{mistakes}");
                ExitCode::from(if mistakes.are_wrong_usage() { 2 } else { 1 })
            }
        }
    }
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
        Subcommands::Top {
            config,
            admin,
            once,
        } => {
            let flags = admin.map(|admin| ("admin", vec![admin]));
            return Invocation {
                command: Command::Top { once },
                sources: Sources {
                    file: config,
                    flags: flags.into_iter().collect(),
                    ..Sources::default()
                },
                reload,
            };
        }
        Subcommands::Advise { admin, time } => {
            return beside_a_gateway(Command::Advise { admin, time });
        }
        Subcommands::Health { admin } => return beside_a_gateway(Command::Health { admin }),
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

/// A command that asks a running gateway, and has no configuration of its own.
fn beside_a_gateway(command: Command) -> Invocation {
    Invocation {
        command,
        sources: Sources::default(),
        reload: false,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

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
    fn advise_has_an_address_and_a_time() {
        let admin = |text: &str| text.parse().expect("an address");
        assert_eq!(
            parsed("layby advise").command,
            Command::Advise {
                admin: admin("127.0.0.1:9180"),
                time: Duration::from_secs(30)
            }
        );
        assert_eq!(
            parsed("layby advise --admin 127.0.0.1:7000 --time 2m").command,
            Command::Advise {
                admin: admin("127.0.0.1:7000"),
                time: Duration::from_secs(120)
            }
        );
        assert_eq!(usage_error("layby advise --time soon"), 2);
        assert_eq!(usage_error("layby advise --admin here"), 2);
    }

    #[test]
    fn top_finds_the_admin_listener_like_the_gateway_itself() {
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
        let found = |line, env| admin(line, file, env).expect("it is there");
        assert_eq!(found("layby top", &[]), "127.0.0.1:7001");
        assert_eq!(
            found("layby top", &[("LAYBY_ADMIN", "[::]:7002")]),
            "[::1]:7002"
        );
        assert_eq!(
            found("layby top --admin 10.0.0.7:7003", &[]),
            "10.0.0.7:7003"
        );
        assert_eq!(
            admin("layby top", "", &[]).expect("the default"),
            "127.0.0.1:9180"
        );
        let mistakes = admin("layby top --admin here", "", &[]).expect_err("it is none");
        assert!(mistakes.are_wrong_usage());
        assert!(admin("layby top", "admin = ", &[]).is_err());
        assert_eq!(
            parsed("layby top --once").command,
            Command::Top { once: true }
        );
    }

    #[test]
    fn health_has_an_address() {
        let admin = |text: &str| Command::Health {
            admin: text.parse().expect("an address"),
        };
        assert_eq!(parsed("layby health").command, admin("127.0.0.1:9180"));
        assert_eq!(
            parsed("layby health --admin [::1]:7000").command,
            admin("[::1]:7000")
        );
        assert_eq!(usage_error("layby health 127.0.0.1:9180"), 2);
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
