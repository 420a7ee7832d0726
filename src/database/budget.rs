//! From the limits of a database to a number of slots. Arithmetic only.

use std::fmt;

use super::BudgetError;
use crate::config::Ratio;

/// More slots than this per core help nobody: with a tenth of a step spent in Python and
/// the rest in the database, ten already keep a core busy. Whoever knows better gives a
/// number instead of `auto`.
const SLOTS_PER_CORE: u32 = 16;

/// A gateway that has the database to itself.
const WHOLE: Ratio = Ratio(1.0);

/// What the head-room is at least: one for a migration or a shell, one for monitoring.
const LEAST_HEADROOM: u32 = 2;

/// What a database says about connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    /// `superuser_reserved_connections` and, since PostgreSQL 16, `reserved_connections`.
    /// Left free also by those who might use them: they are the way in when all else is full.
    pub reserved: u32,
    pub role: String,
    pub role_limit: Option<u32>,
    pub database: String,
    pub database_limit: Option<u32>,
    /// The limits of role and database do not hold for superusers.
    pub superuser: bool,
    /// Connections of clients now, to any database of the server, without the one that asked.
    pub in_use: u32,
}

/// How many connections the application may use, and why; `Display` is the sum in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    limits: Limits,
    cores: u32,
    share: Ratio,
}

impl Budget {
    pub fn new(limits: Limits, cores: u32) -> Self {
        Self {
            limits,
            cores,
            share: WHOLE,
        }
    }

    /// The part of one gateway among several that share the database.
    #[must_use]
    pub fn shared(self, share: Ratio) -> Self {
        Self { share, ..self }
    }

    /// The slots of `slots.count = "auto"`.
    ///
    /// # Errors
    /// [`BudgetError::NothingLeft`] if the head-room takes all.
    pub fn slots(&self) -> Result<u16, BudgetError> {
        let slots = self.ours().min(self.useful());
        match u16::try_from(slots).unwrap_or(u16::MAX) {
            0 => Err(BudgetError::NothingLeft(self.clone())),
            slots => Ok(slots),
        }
    }

    /// Whether the database bears this many slots; if not, what is wrong, with the numbers.
    pub fn check_fixed(&self, slots: u16) -> Option<String> {
        let slots = u32::from(slots);
        let allowed = self.allowed();
        let ours = self.ours();
        let free = self.server().saturating_sub(self.limits.in_use);
        let wrong = if slots > allowed {
            format!("the database allows {allowed} connections and refuses more")
        } else if slots > self.left() {
            let left = allowed - slots;
            format!("that leaves {left} for migrations, shells and monitoring")
        } else if slots > ours {
            format!("this gateway's share is {ours}")
        } else if slots > free {
            let used = self.limits.in_use;
            format!("others (or replicas) use {used} connections now and only {free} are free")
        } else {
            return None;
        };
        Some(format!(
            "slots.count is {slots}, but {wrong} ({})",
            self.sum()
        ))
    }

    /// What the server has for everybody.
    fn server(&self) -> u32 {
        let Limits {
            max_connections,
            reserved,
            ..
        } = self.limits;
        max_connections.saturating_sub(reserved)
    }

    /// What this role may use of that in this database.
    fn allowed(&self) -> u32 {
        let own = self.own_limits().map(|(_, _, limit)| limit);
        own.fold(self.server(), u32::min)
    }

    /// A tenth for whatever else connects: migrations, shells, monitoring, backups, and
    /// connections of a killed worker that the server has not missed yet.
    fn headroom(&self) -> u32 {
        self.allowed().div_ceil(10).max(LEAST_HEADROOM)
    }

    fn left(&self) -> u32 {
        self.allowed().saturating_sub(self.headroom())
    }

    /// This gateway's part of that.
    fn ours(&self) -> u32 {
        // 0.29 of 100 is 29, whatever floating point makes of it.
        (f64::from(self.left()) * self.share.0 + 1e-6) as u32
    }

    fn useful(&self) -> u32 {
        self.cores.saturating_mul(SLOTS_PER_CORE)
    }

    /// The limits beside the server's that hold: kind, name, connections.
    fn own_limits(&self) -> impl Iterator<Item = (&'static str, &str, u32)> {
        let limits = &self.limits;
        let of_role = limits.role_limit.map(|n| ("role", limits.role.as_str(), n));
        let of_database = limits
            .database_limit
            .map(|n| ("database", limits.database.as_str(), n));
        let hold = !limits.superuser;
        of_role.into_iter().chain(of_database).filter(move |_| hold)
    }

    /// `max_connections 100 − reserved 3 − head-room 10 = 87`, or with limits of role or
    /// database `max_connections 100 − reserved 3 = 97; role shop: 20; 20 − head-room 2 = 18`. With a
    /// share, and what that comes to: `; share 0.25 = 21`.
    fn sum(&self) -> String {
        let Limits {
            max_connections,
            reserved,
            ..
        } = self.limits;
        let (headroom, left) = (self.headroom(), self.left());
        let share = match self.share {
            WHOLE => String::new(),
            Ratio(part) => format!("; share {part} = {}", self.ours()),
        };
        let server = format!("max_connections {max_connections} − reserved {reserved}");
        let own: Vec<String> = self
            .own_limits()
            .map(|(kind, name, limit)| format!("{kind} {name}: {limit}"))
            .collect();
        if own.is_empty() {
            return format!("{server} − head-room {headroom} = {left}{share}");
        }
        format!(
            "{server} = {}; {}; {} − head-room {headroom} = {left}{share}",
            self.server(),
            own.join("; "),
            self.allowed(),
        )
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.sum())?;
        let (cores, useful) = (self.cores, self.useful());
        if self.ours() > useful {
            writeln!(f, "at most {SLOTS_PER_CORE} × {cores} cores = {useful}")?;
        }
        write!(f, "in use by others now: {}", self.limits.in_use)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            max_connections: 100,
            reserved: 3,
            role: "shop".to_owned(),
            role_limit: None,
            database: "orders".to_owned(),
            database_limit: None,
            superuser: false,
            in_use: 12,
        }
    }

    /// On enough cores not to matter.
    fn budget(limits: Limits) -> Budget {
        Budget::new(limits, 1000)
    }

    fn slots(limits: Limits) -> u16 {
        budget(limits).slots().expect("something is left")
    }

    #[test]
    fn the_server_is_the_limit_when_nothing_else_is() {
        let budget = budget(limits());
        assert_eq!(budget.slots().expect("something is left"), 87);
        assert_eq!(
            budget.to_string(),
            "max_connections 100 − reserved 3 − head-room 10 = 87\nin use by others now: 12"
        );
    }

    #[test]
    fn the_least_limit_counts() {
        let role = Limits {
            role_limit: Some(20),
            database_limit: Some(50),
            ..limits()
        };
        assert_eq!(slots(role.clone()), 18);
        assert_eq!(
            budget(role.clone()).to_string(),
            "max_connections 100 − reserved 3 = 97; role shop: 20; database orders: 50; \
             20 − head-room 2 = 18\nin use by others now: 12"
        );
        let database = Limits {
            database_limit: Some(8),
            ..role
        };
        assert_eq!(slots(database), 6);
    }

    #[test]
    fn limits_of_role_and_database_do_not_hold_for_superusers() {
        let limits = Limits {
            role_limit: Some(5),
            database_limit: Some(5),
            superuser: true,
            ..limits()
        };
        assert_eq!(slots(limits), 87);
    }

    #[test]
    fn a_large_database_does_not_make_more_slots_than_the_cores_can_use() {
        let limits = Limits {
            max_connections: 5000,
            ..limits()
        };
        let budget = Budget::new(limits, 2);
        assert_eq!(budget.slots().expect("something is left"), 32);
        assert!(budget.to_string().contains("\nat most 16 × 2 cores = 32\n"));
    }

    #[test]
    fn gateways_that_share_a_database_take_no_more_together_than_there_is() {
        let whole = budget(limits());
        let share = |part| whole.clone().shared(Ratio(part));
        let slots = |part| share(part).slots().expect("something is left");
        assert_eq!(slots(1.0), 87);
        assert_eq!((slots(0.5), slots(0.25)), (43, 21));
        assert_eq!(slots(0.333), 28);
        let hundred = Limits {
            max_connections: 112,
            reserved: 0,
            ..limits()
        };
        let exact = budget(hundred).shared(Ratio(0.29));
        assert_eq!(exact.slots().expect("something is left"), 29);
        assert_eq!(
            share(0.25).to_string(),
            "max_connections 100 − reserved 3 − head-room 10 = 87; share 0.25 = 21\n\
             in use by others now: 12"
        );

        assert_eq!(share(0.25).check_fixed(21), None);
        let over = share(0.25).check_fixed(22).expect("more than its share");
        assert!(
            over.contains("slots.count is 22, but this gateway's share is 21"),
            "{over}"
        );
        let none = share(0.01).slots().expect_err("it rounds to nothing");
        assert!(none.to_string().contains("share 0.01 = 0"), "{none}");
    }

    #[test]
    fn when_nothing_is_left_the_error_has_the_sum() {
        for role_limit in [0, 1, 2] {
            let limits = Limits {
                role_limit: Some(role_limit),
                ..limits()
            };
            let error = budget(limits).slots().expect_err("the head-room takes all");
            let sum = format!("role shop: {role_limit}; {role_limit} − head-room 2 = 0");
            assert!(error.to_string().contains(&sum), "{error}");
        }
        let all_reserved = Limits {
            max_connections: 3,
            ..limits()
        };
        assert!(budget(all_reserved).slots().is_err());
    }

    #[test]
    fn a_fixed_count_is_checked_against_the_same_sum() {
        let limits = Limits {
            role_limit: Some(20),
            ..limits()
        };
        let warning = |slots| budget(limits.clone()).check_fixed(slots);
        assert_eq!(warning(18), None);
        let tight = warning(19).expect("no head-room");
        assert!(
            tight.contains("slots.count is 19, but that leaves 1 for"),
            "{tight}"
        );
        let over = warning(21).expect("too many");
        assert!(
            over.contains("allows 20 connections and refuses more"),
            "{over}"
        );
        assert!(over.contains("20 − head-room 2 = 18"), "{over}");
    }

    #[test]
    fn a_fixed_count_is_checked_against_what_is_free_now() {
        let limits = Limits {
            in_use: 60,
            ..limits()
        };
        assert_eq!(budget(limits.clone()).check_fixed(37), None);
        let warning = budget(limits).check_fixed(38).expect("97 − 60 = 37");
        assert!(
            warning.contains("use 60 connections now and only 37 are free"),
            "{warning}"
        );
    }
}
