//! Relays: another server's response as the answer, passed on while no slot is held.
//!
//! The fetch belongs to the client: it is ended when she leaves. The request goes on to the relay's
//! end in any case, and its worker, if it wants, hears of that once.

use std::time::Instant;

use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Method, StatusCode};

use super::{Lazy, Life, gone};
use crate::exchange::Failure;
use crate::message::{Answer, AnswerBody};
use crate::metrics::CancelPhase;
use crate::outbound::Relayed;
use crate::plan::{self, Captured, Ended, Relay};

/// How the wait for the response's head ended.
enum Opened {
    Answered(Result<Relayed, plan::Failure>),
    Left,
    Expired,
}

impl Life {
    /// Answers with the response, to its last byte. None if the worker does not ask how that went.
    pub(super) async fn relay(&mut self, relay: Relay) -> Option<Captured> {
        let resume = relay.resume;
        let captured = self.pass_on(relay).await;
        self.has_answer();
        resume.then_some(captured)
    }

    async fn pass_on(&mut self, mut relay: Relay) -> Captured {
        if self.left {
            return Captured::nothing(Ended::ClientGone);
        }
        if let Some(marker) = self.about.record.marker() {
            marker.mark(&mut relay.fetch);
        }
        let outbound = self.exchange.around.outbound.clone();
        let opened = tokio::select! {
            biased; // What nobody waits for is not begun.
            () = gone(&self.client, None) => Opened::Left,
            opened = outbound.relay(relay.fetch, relay.capture, self.deadline.into()) => Opened::Answered(opened),
            () = self.alarm.rang() => Opened::Expired,
        };
        let Relayed {
            status,
            headers,
            body,
            end,
        } = match opened {
            Opened::Answered(Ok(relayed)) => relayed,
            // At the deadline the fetch ends by itself, a moment before the alarm rings.
            Opened::Answered(Err(failure)) if Instant::now() < self.deadline => {
                tracing::warn!(
                    request = %self.about.record.id, kind = failure.kind.as_str(), phase = failure.phase.as_str(), url = %failure.url,
                    message = %failure.message, "relay failed"
                );
                self.body = Lazy::Not;
                self.client.answer(Err(Failure::Origin(failure.kind)));
                return Captured::nothing(Ended::OriginFailed);
            }
            Opened::Answered(Err(_)) | Opened::Expired => {
                self.leave(CancelPhase::Parked);
                return Captured::nothing(Ended::OriginFailed);
            }
            Opened::Left => {
                self.leave(CancelPhase::Parked);
                return Captured::nothing(Ended::ClientGone);
            }
        };
        let bodiless = self.about.method == Method::HEAD
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        // From here on the client has her time, and what she still sends is for nobody.
        self.alarm.clear();
        self.body = Lazy::Not;
        self.client.answer(Ok(Answer {
            status,
            reason: None,
            headers: merged(headers, relay.headers),
            body: AnswerBody::Relayed(body),
        }));
        let nothing = Captured {
            status: Some(status),
            ..Captured::nothing(Ended::OriginFailed)
        };
        // Outbound is gone only with the gateway.
        let captured = end.await.unwrap_or(nothing);
        if bodiless {
            return Captured {
                status: Some(status),
                ..Captured::nothing(Ended::Complete)
            };
        }
        if captured.ended == Ended::ClientGone {
            self.exchange.around.metrics.cancelled(CancelPhase::Parked);
        }
        captured
    }
}

/// The response's headers with the worker's in place of those of the same names. How the body is framed
/// is no business of the worker, who does not see it.
fn merged(mut headers: HeaderMap, replacing: HeaderMap) -> HeaderMap {
    let length = headers.remove(CONTENT_LENGTH);
    for name in replacing.keys() {
        headers.remove(name);
    }
    for (name, value) in &replacing {
        headers.append(name.clone(), value.clone());
    }
    headers.remove(CONTENT_LENGTH);
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length);
    }
    headers
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                value.parse().expect("a value"),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_workers_headers_replace_those_of_the_same_names() {
        let headers = merged(
            map(&[
                ("content-length", "5"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("vary", "accept"),
                ("x-origin", "1"),
            ]),
            map(&[
                ("vary", "cookie"),
                ("vary", "origin"),
                ("content-length", "7"),
            ]),
        );
        let all = |name| {
            let values = headers.get_all(name).iter();
            values
                .map(|value| value.to_str().expect("text"))
                .collect::<Vec<_>>()
        };
        assert_eq!(all("vary"), ["cookie", "origin"]);
        assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
        assert_eq!(all("content-length"), ["5"]);
        assert_eq!(all("x-origin"), ["1"]);
    }
}
