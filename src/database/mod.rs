//! The budget: how many connections the application may hold at once.
//!
//! PostgreSQL is asked once, at start, for everything that bounds the connections of the
//! role in the URL; the rest is arithmetic ([`Budget`]). Connections that others use at
//! this moment are shown and warned about but not taken off, or the same configuration
//! would give other slots at every start, fewest during a rolling restart.

mod budget;
mod error;
mod target;
mod tls;

use std::thread;
use std::time::Duration;

use deadpool_postgres::{Manager, Pool, PoolError};
use tokio::time::timeout;
use tokio_postgres::Row;

use crate::config::Secret;
use target::Target;
use tls::Tls;

pub use budget::{Budget, Limits};
pub use error::BudgetError;
pub use target::Server;

/// For all of it: name, connection, TLS, login, query.
const TIMEOUT: Duration = Duration::from_secs(5);

/// -1 is "no limit". `reserved_connections` came with PostgreSQL 16. A plain role does not
/// see the kind of other roles' backends; client backends are those with a database, beside
/// a few workers of the server that tell their kind.
const ASK: &str = "
    SELECT current_setting('max_connections')::int AS max_connections,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
           r.rolname::text AS role,
           nullif(r.rolconnlimit, -1) AS role_limit,
           r.rolsuper AS superuser,
           d.datname::text AS database,
           nullif(d.datconnlimit, -1) AS database_limit,
           (SELECT count(*)::int FROM pg_stat_activity
             WHERE datid IS NOT NULL AND pid <> pg_backend_pid()
               AND coalesce(backend_type, 'client backend') = 'client backend') AS in_use
      FROM pg_roles r, pg_database d
     WHERE r.rolname = session_user AND d.datname = current_database()";

/// Asks the database what it allows.
///
/// # Errors
/// Any [`BudgetError`] except `NothingLeft`, which is [`Budget::slots`]'s.
pub async fn budget(url: &Secret) -> Result<Budget, BudgetError> {
    let target = Target::parse(&url.0)?;
    let server = target.server.clone();
    let limits = match timeout(TIMEOUT, ask(target)).await {
        Ok(asked) => asked?,
        Err(_) => {
            let seconds = TIMEOUT.as_secs();
            return Err(BudgetError::Timeout { server, seconds });
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Ok(Budget::new(
        limits,
        u32::try_from(cores).unwrap_or(u32::MAX),
    ))
}

async fn ask(target: Target) -> Result<Limits, BudgetError> {
    let Target {
        mut config,
        trust,
        server,
    } = target;
    config.application_name("layby");
    let manager = Manager::new(config, Tls::new(&trust)?);
    let pool = Pool::builder(manager)
        .max_size(1)
        .build()
        .expect("a pool without timeouts needs no runtime");
    let client = pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) => BudgetError::from_postgres(&server, &error),
        other => BudgetError::Unreachable {
            server: server.clone(),
            cause: other.to_string(),
        },
    })?;
    // Without a named statement, so that it works through PgBouncer too.
    let row = client.query_typed_one(ASK, &[]).await;
    let limits = row.and_then(|row| limits(&row));
    limits.map_err(|error| BudgetError::from_postgres(&server, &error))
}

fn limits(row: &Row) -> Result<Limits, tokio_postgres::Error> {
    // PostgreSQL's integers are signed, but none of these is negative.
    let count = |name| {
        row.try_get::<_, Option<i32>>(name)
            .map(|n| n.map(|n| u32::try_from(n).unwrap_or(0)))
    };
    Ok(Limits {
        max_connections: count("max_connections")?.unwrap_or(0),
        reserved: count("reserved")?.unwrap_or(0),
        role: row.try_get("role")?,
        role_limit: count("role_limit")?,
        database: row.try_get("database")?,
        database_limit: count("database_limit")?,
        superuser: row.try_get("superuser")?,
        in_use: count("in_use")?.unwrap_or(0),
    })
}
