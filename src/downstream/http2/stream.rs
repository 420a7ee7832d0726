//! One request of a connection that carries many.
//!
//! It ends with its answer's last byte, when its client resets it, or when its deadline passes: the client has
//! stopped sending its body, or reading the answer. In the last two cases the stream is reset and the
//! connection goes on.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE, EXPECT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use super::body::Incoming;
use crate::downstream::Downstream;
use crate::downstream::answers::{Body, is_bodiless};
use crate::downstream::head::strip_hop_by_hop;
use crate::downstream::watch::Watch;
use crate::downstream::way::Way;

/// Offered to a stream at a time: one that is read slowly must not have all of an answer set aside for it.
const PART: usize = 16 * 1024;

/// Why a stream ends without all of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client, or the whole connection, has gone.
    Left,
    /// The client neither sends nor reads.
    Late,
    /// There is no more of the answer than this, and it is not whole.
    Cut,
}

/// Takes the request to its answer, and that to the client.
pub async fn answer(
    downstream: Arc<Downstream>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    way: Way,
) {
    let watch = Watch::new(downstream.sweeper.alarm(), downstream.settings().bounds);
    let (request, wanted) = adapt(request);
    let method = request.method().clone();
    let handled = Box::pin(downstream.handle(request, None, &way, &watch, None));
    let response = match handle(handled, &mut respond, &watch, wanted).await {
        Ok(response) => response,
        Err(end) => return reset(end, |reason| respond.send_reset(reason)),
    };
    let over = is_bodiless(response.status(), &method) || response.body().is_end_stream();
    let (head, mut body) = fit(response, &method);
    body.read_in(PART);
    // It fails when the client has just gone.
    let Ok(mut sender) = respond.send_response(head, over) else {
        return;
    };
    if over {
        return;
    }
    if let Err(end) = send(&mut sender, body, &watch).await {
        reset(end, |reason| sender.send_reset(reason));
    }
}

fn reset(end: End, send: impl FnOnce(Reason)) {
    match end {
        End::Left => {}
        End::Late => send(Reason::CANCEL),
        End::Cut => send(Reason::INTERNAL_ERROR),
    }
}

/// The request with a body that can be taken, and, if its client waits to be told that the body is wanted, what
/// resolves when it is.
fn adapt(request: Request<RecvStream>) -> (Request<Incoming>, Option<oneshot::Receiver<()>>) {
    let (parts, stream) = request.into_parts();
    let (wanted, told) = match parts.headers.contains_key(EXPECT) && !stream.is_end_stream() {
        true => {
            let (wanted, told) = oneshot::channel();
            (Some(wanted), Some(told))
        }
        false => (None, None),
    };
    let body = Incoming::new(stream, &parts.headers, wanted);
    (Request::from_parts(parts, body), told)
}

/// Waits for the answer, and for all that may come before it.
async fn handle<E>(
    handled: impl Future<Output = Result<Response<Body>, E>>,
    respond: &mut SendResponse<Bytes>,
    watch: &Watch,
    wanted: Option<oneshot::Receiver<()>>,
) -> Result<Response<Body>, End> {
    let mut handled = pin!(handled);
    let mut wanted = pin!(async {
        match wanted {
            Some(wanted) => wanted.await.is_ok(),
            None => std::future::pending().await,
        }
    });
    let mut told = false;
    loop {
        tokio::select! {
            biased; // A client that has left is not answered, and counted as such.
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return Err(End::Left),
            wanted = &mut wanted, if !told => {
                told = true;
                if wanted {
                    let mut go_on = Response::new(());
                    *go_on.status_mut() = StatusCode::CONTINUE;
                    // It fails when the client has just gone.
                    let _ = respond.send_informational(go_on);
                }
            }
            response = &mut handled => return response.map_err(|_| End::Late),
            () = watch.alarm.rang() => return Err(End::Late),
        }
    }
}

/// The head of an answer without what HTTP/2 does not know, and its body.
fn fit(response: Response<Body>, method: &Method) -> (Response<()>, Body) {
    let (mut head, body) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    if !head.headers.contains_key(DATE)
        && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now()))
    {
        head.headers.insert(DATE, now);
    }
    // What HEAD is told is the length that GET would have had: no body is at hand where that is not known.
    let has_length = !matches!(
        head.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    if has_length
        && !head.headers.contains_key(CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
        && (length > 0 || *method != Method::HEAD)
    {
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    (Response::from_parts(head, ()), body)
}

async fn send(sender: &mut SendStream<Bytes>, mut body: Body, watch: &Watch) -> Result<(), End> {
    loop {
        if body.lies_in_file() {
            // Many streams that nobody reads might have a piece each: none is read before it is wanted.
            room(sender, PART, watch).await?;
        }
        let frame = tokio::select! {
            biased;
            _ = poll_fn(|cx| sender.poll_reset(cx)) => return Err(End::Left),
            frame = body.frame() => frame,
            () = watch.alarm.rang() => return Err(End::Late),
        };
        let Some(frame) = frame else {
            return sender.send_data(Bytes::new(), true).map_err(|_| End::Left);
        };
        let Ok(frame) = frame else {
            return Err(End::Cut);
        };
        if let Ok(data) = frame.into_data() {
            let last = body.is_end_stream();
            pass(sender, data, last, watch).await?;
            if last {
                return Ok(());
            }
        }
    }
}

/// Passes on as much at a time as the client has said that it takes, so that no more than that ever waits
/// in the connection.
async fn pass(
    sender: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    watch: &Watch,
) -> Result<(), End> {
    while !data.is_empty() {
        let room = room(sender, data.len().min(PART), watch).await?;
        let part = data.split_to(room.min(data.len()));
        sender
            .send_data(part, last && data.is_empty())
            .map_err(|_| End::Left)?;
    }
    Ok(())
}

/// How much the client takes now, of so much that is there for it. Waits until it is something.
async fn room(sender: &mut SendStream<Bytes>, wanted: usize, watch: &Watch) -> Result<usize, End> {
    sender.reserve_capacity(wanted);
    let room = sender.capacity();
    if room > 0 {
        return Ok(room);
    }
    watch.behind();
    let room = tokio::select! {
        granted = poll_fn(|cx| sender.poll_capacity(cx)) => match granted {
            Some(Ok(room)) => room,
            Some(Err(_)) | None => return Err(End::Left),
        },
        () = watch.alarm.rang() => return Err(End::Late),
    };
    watch.took(room);
    watch.caught_up();
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_not_told_a_length_that_nobody_knows() {
        let told = |method: Method, text: &'static str| {
            let body = Body::whole(Bytes::from_static(text.as_bytes()));
            let (head, _) = fit(Response::new(body), &method);
            let length = head.headers().get(CONTENT_LENGTH);
            length.map(|length| length.to_str().expect("digits").to_owned())
        };
        assert_eq!(told(Method::HEAD, ""), None);
        assert_eq!(told(Method::GET, "").as_deref(), Some("0"));
        assert_eq!(told(Method::HEAD, "four").as_deref(), Some("4"));
    }
}
