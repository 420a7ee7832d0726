//! Plans and results as a worker sees them: JSON and bytes.

use serde_json::{Value, json};

/// What a scripted worker parks or holds with.
#[derive(Debug, Clone)]
pub struct Plan {
    pub json: Value,
    /// The request bodies of its fetches.
    pub bodies: Vec<u8>,
}

impl Plan {
    /// One GET.
    pub fn get(url: &str) -> Self {
        Self::of(json!([{ "fetch": { "method": "GET", "url": url } }]))
    }

    /// One POST.
    pub fn post(url: &str, body: &[u8]) -> Self {
        let range = [0, body.len()];
        let mut plan =
            Self::of(json!([{ "fetch": { "method": "POST", "url": url, "body": range } }]));
        plan.bodies = body.to_vec();
        plan
    }

    pub fn sleep(seconds: f64) -> Self {
        Self::of(json!([{ "sleep": seconds }]))
    }

    /// Any things.
    pub fn of(things: Value) -> Self {
        Self {
            json: json!({ "gather": things }),
            bodies: Vec::new(),
        }
    }

    /// Sets a key of the plan: `join`, `timeout`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.json[key] = value.into();
        self
    }

    /// Follows redirects, in every fetch.
    pub fn following(mut self) -> Self {
        for thing in self.json["gather"].as_array_mut().expect("an array") {
            thing["fetch"]["follow"] = true.into();
        }
        self
    }

    /// For a `HOLD`.
    pub fn held(self, reason: &str, source: &str) -> Self {
        self.set("hold", json!({ "reason": reason, "source": source }))
    }
}

/// What a plan came to.
#[derive(Debug)]
pub struct Results {
    pub json: Value,
    pub bytes: Vec<u8>,
    pub by_descriptor: bool,
}

impl Results {
    /// The entry of one thing.
    pub fn entry(&self, place: usize) -> &Value {
        &self.json["results"][place]
    }

    /// The body of one response.
    pub fn body(&self, place: usize) -> &[u8] {
        let range = &self.entry(place)["body"];
        let number = |at: usize| {
            let number = range[at].as_u64();
            number.unwrap_or_else(|| panic!("no response: {}", self.json)) as usize
        };
        &self.bytes[number(0)..][..number(1)]
    }

    pub fn text(&self, place: usize) -> String {
        String::from_utf8_lossy(self.body(place)).into_owned()
    }

    /// Which error a fetch ended with.
    pub fn error(&self, place: usize) -> &str {
        let error = self.entry(place)["error"].as_str();
        error.unwrap_or_else(|| panic!("no error: {}", self.json))
    }
}
