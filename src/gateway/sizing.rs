//! How many slots there are: as configured, or as many as the database allows.

use crate::config::{Config, Count};
use crate::database;

/// # Errors
/// When the database is to decide and cannot be asked; the text says what to do.
pub async fn slots(config: &Config) -> Result<u16, String> {
    let budget = match &config.database {
        Some(database) => {
            let whole = database::budget(&database.url).await;
            Some(whole.map(|whole| whole.shared(database.share)))
        }
        None => None,
    };
    match (config.slots.count, budget) {
        (Count::Auto, Some(budget)) => {
            let budget = budget.map_err(|error| format!("cannot size the slots: {error}"))?;
            tracing::info!("slots from the database:\n{budget}");
            budget
                .slots()
                .map_err(|error| format!("cannot size the slots: {error}"))
        }
        (Count::Auto, None) => {
            Err("slots.count is \"auto\", but there is no [database] url to ask".to_owned())
        }
        (Count::Fixed(count), None) => Ok(count),
        (Count::Fixed(count), Some(budget)) => {
            // A fixed count is the operator's word; the database's is good advice.
            match budget {
                Ok(budget) => {
                    if let Some(warning) = budget.check_fixed(count) {
                        tracing::warn!("{warning}");
                    }
                }
                Err(error) => tracing::warn!("cannot check slots.count: {error}"),
            }
            Ok(count)
        }
    }
}
