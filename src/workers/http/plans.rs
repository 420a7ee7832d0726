//! Plans over HTTP: which answer is a plan, and the request that brings its results.
//!
//! Each request carries a token that is good for its answer alone, so that nothing that an application merely
//! passes on can make the gateway fetch. Where a request resumes, and with what, is signed: the
//! application can tell the gateway from whoever else reaches it. Pure but for random numbers and the clock.

use std::slice;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use ring::digest::{Context, SHA256};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;

use super::head::Head;
use crate::message::{Request, RequestBody};
use crate::plan::http::{Results, Resume, decode_parking};
use crate::plan::{Outcome, Plan};
use crate::record::hex;
use crate::spool::Body;

const MEDIA_TYPE: &[u8] = b"application/vnd.layby.plan+json";

pub const TOKEN: HeaderName = HeaderName::from_static("layby-token");
const ID: HeaderName = HeaderName::from_static("layby-id");
const EXPIRES: HeaderName = HeaderName::from_static("layby-expires");
const SIGNATURE: HeaderName = HeaderName::from_static("layby-signature");

/// What is signed begins with it, so that a signature means nothing else ever.
const VERSION: &str = "layby-resume-v1";

/// 128 random bits in hexadecimal digits.
const TOKEN_LEN: usize = 32;

/// Who may send plans, and how what comes of them is signed.
#[derive(Debug)]
pub struct Signer {
    key: hmac::Key,
    random: SystemRandom,
}

/// What the answer to one request must say to be a plan.
#[derive(Clone, Copy)]
pub struct Token([u8; TOKEN_LEN]);

/// A request of a client whose next job is a request of the gateway's.
#[derive(Debug)]
pub struct Continuation {
    /// The client's, without its body and what belongs to that.
    request: Request,
    resume: Resume,
    /// Signed for who was told the token. Another one may be in force by now.
    signer: Arc<Signer>,
}

/// What a resume says beside its results.
#[derive(Serialize)]
struct Beside<'c> {
    state: &'c str,
    request: About<'c>,
}

/// The client's request.
#[derive(Serialize)]
struct About<'c> {
    id: &'c str,
    method: &'c str,
    target: &'c str,
}

impl Signer {
    pub fn new(secret: &str) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            random: SystemRandom::new(),
        }
    }

    /// Nobody knows it before.
    pub fn token(&self) -> Token {
        let mut bytes = [0; TOKEN_LEN / 2];
        let filled = self.random.fill(&mut bytes);
        filled.expect("the system has random numbers once it is up");
        let mut digits = [0; TOKEN_LEN];
        let (high, low) = bytes.split_at(TOKEN_LEN / 4);
        let number = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("eight bytes"));
        hex(number(high), &mut digits[..TOKEN_LEN / 2]);
        hex(number(low), &mut digits[TOKEN_LEN / 2..]);
        Token(digits)
    }

    /// Whether the text is the token, in a time that tells nothing of it.
    fn is(&self, token: Token, text: &[u8]) -> bool {
        let tag = hmac::sign(&self.key, &token.0);
        hmac::verify(&self.key, text, tag.as_ref()).is_ok()
    }
}

impl Token {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Takes the token out of an answer, which is for nobody else to see. True if the answer is a plan.
pub fn is_plan(signer: &Signer, token: Token, head: &mut Head) -> bool {
    let echoed = head.headers.get_all(&TOKEN).iter();
    let mut echoed = echoed.map(HeaderValue::as_bytes);
    let matches = match (echoed.next(), echoed.next()) {
        (Some(text), None) => signer.is(token, text),
        _ => false,
    };
    head.headers.remove(&TOKEN);
    matches && is_of_plans(&head.headers)
}

fn is_of_plans(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(named), None) = (types.next(), types.next()) else {
        return false;
    };
    let media = named.as_bytes().split(|byte| *byte == b';').next();
    media.is_some_and(|media| media.trim_ascii().eq_ignore_ascii_case(MEDIA_TYPE))
}

/// What makes this head no beginning of a plan, though it says that it is one.
pub fn fault(head: &Head, method: &Method) -> Option<&'static str> {
    if *method == Method::HEAD {
        Some("a plan has no place in the answer to HEAD, which has no body")
    } else if head.status != StatusCode::OK {
        Some("a plan has status 200")
    } else if head.headers.contains_key(CONTENT_ENCODING) {
        Some("a plan has no Content-Encoding")
    } else {
        None
    }
}

/// A plan as it has come, and what its request goes on with.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn read(body: &[u8]) -> Result<(Plan, Resume), String> {
    decode_parking(body).map_err(|error| error.to_string())
}

impl Continuation {
    /// Of a client's request that has been answered with a plan.
    pub fn new(request: Request, resume: Resume, signer: Arc<Signer>) -> Self {
        let Request {
            mut headers,
            version,
            method,
            target,
            path,
            query,
            client,
            record,
            ..
        } = request;
        let left_behind: Vec<HeaderName> = headers
            .keys()
            .filter(|name| stays_behind(name.as_str()))
            .cloned()
            .collect();
        for name in left_behind {
            headers.remove(name);
        }
        Self {
            request: Request {
                method,
                version,
                target,
                path,
                query,
                headers,
                client,
                record,
                body: RequestBody::Here(Body::Memory(Bytes::new())),
                upgrade: None,
            },
            resume,
            signer,
        }
    }

    /// The same request after another plan.
    #[must_use]
    pub fn again(self, resume: Resume, signer: Arc<Signer>) -> Self {
        Self {
            resume,
            signer,
            ..self
        }
    }

    /// What it takes of the gateway's memory.
    pub fn retained(&self) -> u64 {
        let header = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
        let headers: usize = self.request.headers.iter().map(header).sum();
        (headers + self.request.target.len() + self.resume.state.len()) as u64
    }

    /// The body of the request that brings these results.
    pub fn results<'o>(&self, outcomes: &'o [Outcome]) -> Results<slice::Iter<'o, Outcome>> {
        let request = &self.request;
        let beside = Beside {
            state: &self.resume.state,
            request: About {
                id: request.record.id.as_str(),
                method: request.method.as_str(),
                target: &request.target,
            },
        };
        Results::beside(&beside, outcomes)
    }

    /// The request that brings results: from the gateway, in the name of the client. `signer` is the one in
    /// force, if there is one.
    pub fn request(
        &self,
        signer: Option<&Signer>,
        body: Body,
        digest: &Digest,
        until: Instant,
    ) -> Request {
        let signer = signer.unwrap_or(&self.signer);
        let record = &self.request.record;
        let number = signer.token();
        let mut id = record.id.as_str().as_bytes().to_vec();
        id.push(b':');
        id.extend_from_slice(number.as_bytes());
        let expires = seconds_at(until).to_string();
        let signature = sign(&signer.key, &id, &self.resume, digest, &expires);

        let mut headers = self.request.headers.clone();
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        let mut set = |name, value: &[u8]| {
            let value = HeaderValue::from_bytes(value).expect("ids, digits and signs are ASCII");
            headers.insert(name, value);
        };
        set(ID, &id);
        set(EXPIRES, expires.as_bytes());
        set(SIGNATURE, signature.as_bytes());
        Request {
            method: Method::POST,
            version: self.request.version,
            target: self.resume.path.as_str().into(),
            path: self.resume.path.clone().into_bytes(),
            query: String::new(),
            headers,
            client: self.request.client.clone(),
            record: Arc::clone(record),
            body: RequestBody::Here(body),
            upgrade: None,
        }
    }
}

/// Of a body, as it is made.
pub struct Digesting(Context);

/// In hexadecimal digits.
#[derive(Debug)]
pub struct Digest(String);

impl Digesting {
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub fn finish(self) -> Digest {
        Digest(digits(self.0.finish().as_ref()))
    }
}

/// The signature's header. Each part stands in a line of its own and none can hold a line's end, so no two
/// resumes are signed alike. The state can: its digest stands for it.
fn sign(
    key: &hmac::Key,
    id: &[u8],
    resume: &Resume,
    Digest(body): &Digest,
    expires: &str,
) -> String {
    let state = digits(ring::digest::digest(&SHA256, resume.state.as_bytes()).as_ref());
    let mut signing = hmac::Context::with_key(key);
    let lines: [&[u8]; 6] = [
        VERSION.as_bytes(),
        id,
        resume.path.as_bytes(),
        state.as_bytes(),
        body.as_bytes(),
        expires.as_bytes(),
    ];
    for line in lines {
        signing.update(line);
        signing.update(b"\n");
    }
    format!("v1={}", digits(signing.sign().as_ref()))
}

fn digits(bytes: &[u8]) -> String {
    let mut text = vec![0; 2 * bytes.len()];
    for (byte, digits) in bytes.iter().zip(text.chunks_mut(2)) {
        hex(u64::from(*byte), digits);
    }
    String::from_utf8(text).expect("digits are ASCII")
}

/// Since 1970, rounded up.
fn seconds_at(instant: Instant) -> u64 {
    let left = instant.saturating_duration_since(Instant::now());
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = now.unwrap_or_default() + left;
    at.as_secs() + u64::from(at.subsec_nanos() > 0)
}

/// Headers that are about the client's body, about which part of an answer it wants and on what conditions, or
/// about how it is to be asked: none of this is so of the request that brings results.
fn stays_behind(name: &str) -> bool {
    const OTHERS: [&str; 15] = [
        "digest",
        "repr-digest",
        "want-digest",
        "want-repr-digest",
        "range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
        "expect",
        "upgrade",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
    ];
    name.starts_with("content-")
        || name.starts_with("want-content-")
        || name.starts_with("sec-websocket-")
        || name.starts_with("layby-")
        || OTHERS.contains(&name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::head::decode;
    use super::*;

    fn resume(path: &str, state: &str) -> Resume {
        Resume {
            path: path.to_owned(),
            state: state.to_owned(),
        }
    }

    fn digest(body: &[u8]) -> Digest {
        let mut digesting = Digesting::new();
        // However it comes, it is the same.
        for piece in body.chunks(3) {
            digesting.add(piece);
        }
        digesting.finish()
    }

    /// The values of `docs/plans.md`, which anybody can check by other means.
    #[test]
    fn a_signature_is_as_the_document_has_it() {
        let key = Signer::new("0123456789abcdef0123456789abcdef").key;
        let signature = sign(
            &key,
            b"01JD:5b9e",
            &resume("/.layby/quote", "42"),
            &digest(b"{\"state\":\"42\",\"results\":[]}"),
            "1764158400",
        );
        assert_eq!(
            signature,
            "v1=15c71633428ac0ba82391de58272539a7cb80f2904f5fca684a0ad2050e5e40b"
        );
    }

    #[test]
    fn an_answer_is_a_plan_if_it_says_so_and_echoes_the_token() {
        let signer = Signer::new("secret");
        let (token, other) = (signer.token(), signer.token());
        assert_ne!(token.as_bytes(), other.as_bytes());
        let text = |token: Token| String::from_utf8(token.as_bytes().to_vec()).expect("digits");
        let plan = "content-type: application/vnd.layby.plan+json\r\n";
        let echo = format!("layby-token: {}\r\n", text(token));
        for (headers, expected) in [
            (format!("{plan}{echo}"), true),
            (
                format!("Content-Type: Application/Vnd.Layby.Plan+JSON ; charset=utf-8\r\n{echo}"),
                true,
            ),
            (plan.to_owned(), false),
            (echo.clone(), false),
            (format!("{plan}{echo}{echo}"), false),
            (format!("{plan}{plan}{echo}"), false),
            (format!("{plan}layby-token: {}\r\n", text(other)), false),
            (format!("{plan}layby-token: \r\n"), false),
            (
                format!("content-type: application/vnd.layby.plan+jsonx\r\n{echo}"),
                false,
            ),
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
            let mut bytes = bytes::BytesMut::from(head.as_bytes());
            let decoded = decode(&mut bytes, &Method::GET, false);
            let mut head = decoded.expect("an answer").expect("whole");
            assert_eq!(is_plan(&signer, token, &mut head), expected, "{headers}");
            assert!(!head.headers.contains_key(TOKEN));
        }
    }

    #[test]
    fn what_is_about_the_clients_body_or_its_method_stays_behind() {
        for name in [
            "content-type",
            "range",
            "if-none-match",
            "expect",
            "x-http-method-override",
        ] {
            assert!(stays_behind(name), "{name}");
        }
        for name in [
            "host",
            "cookie",
            "authorization",
            "accept-language",
            "x-request-id",
            "origin",
        ] {
            assert!(!stays_behind(name), "{name}");
        }
    }

    proptest! {
        /// Two different resumes have different signatures, wherever one thing ends and the next begins.
        #[test]
        fn a_signature_is_of_one_resume(
            one in ("[a-c:]{1,3}", "[a-c/]{1,3}", "[a-c\n]{0,3}", "[a-c]{0,3}", "[0-9]{1,2}"),
            other in ("[a-c:]{1,3}", "[a-c/]{1,3}", "[a-c\n]{0,3}", "[a-c]{0,3}", "[0-9]{1,2}"),
        ) {
            let signer = Signer::new("secret");
            let signed = |(id, path, state, body, expires): &(String, String, String, String, String)| {
                let digest = digest(body.as_bytes());
                sign(&signer.key, id.as_bytes(), &resume(path, state), &digest, expires)
            };
            prop_assert_eq!(signed(&one) == signed(&other), one == other);
        }
    }
}
