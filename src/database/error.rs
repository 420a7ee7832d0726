//! Why the budget is not known, in words for the operator who reads the start-up log.

use std::error::Error;
use std::fmt;

use tokio_postgres::error::SqlState;

use super::Budget;
use super::target::Server;

/// Why there is no budget. `Display` says what failed, why, and what to do about it; there
/// is no further source, and nothing of it is secret.
#[derive(Debug)]
pub enum BudgetError {
    /// The URL is wrong or asks for what layby cannot do; the text says what.
    Url(String),
    Unreachable {
        server: Server,
        cause: String,
    },
    Timeout {
        server: Server,
        seconds: u64,
    },
    /// Wrong password, unknown role, or no entry in `pg_hba.conf`.
    Authentication {
        server: Server,
        cause: String,
    },
    /// No connection is left even to ask.
    Full {
        server: Server,
        cause: String,
    },
    /// It answered, but not the question.
    Failed {
        server: Server,
        cause: String,
    },
    NothingLeft(Budget),
}

impl BudgetError {
    pub(super) fn from_postgres(server: &Server, error: &tokio_postgres::Error) -> Self {
        let server = server.clone();
        let Some(answer) = error.as_db_error() else {
            return Self::Unreachable {
                server,
                cause: chain(error),
            };
        };
        let cause = answer.message().to_owned();
        match answer.code() {
            &SqlState::TOO_MANY_CONNECTIONS => Self::Full { server, cause },
            // Class 28: invalid authorization.
            code if code.code().starts_with("28") => Self::Authentication { server, cause },
            _ => Self::Failed { server, cause },
        }
    }
}

impl fmt::Display for BudgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(what) => write!(f, "[database] url: {what}"),
            Self::Unreachable { server, cause } => write!(
                f,
                "cannot connect to the database ({server}): {cause}; check that it runs, that \
                 it can be reached from here, and that sslmode suits it"
            ),
            Self::Timeout { server, seconds } => write!(
                f,
                "the database ({server}) did not answer within {seconds} s; check that it runs \
                 and that no firewall is in between"
            ),
            Self::Authentication { server, cause } => write!(
                f,
                "the database ({server}) does not let us in: {cause}; check user and password \
                 in [database] url, and pg_hba.conf"
            ),
            Self::Full { server, cause } => write!(
                f,
                "the database ({server}) has no connection left to ask for its limits: {cause}; \
                 end some, or give slots.count as a number"
            ),
            Self::Failed { server, cause } => write!(
                f,
                "the database ({server}) could not say its limits: {cause}; correct \
                 [database] url, or give slots.count as a number"
            ),
            Self::NothingLeft(budget) => {
                let sum = budget.to_string().replace('\n', "; ");
                write!(
                    f,
                    "the database leaves no connection for slots: {sum}; raise its limits, or \
                     give slots.count as a number"
                )
            }
        }
    }
}

impl Error for BudgetError {}

/// The error and its causes, outermost first.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        // Some errors repeat what they wrap.
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}
