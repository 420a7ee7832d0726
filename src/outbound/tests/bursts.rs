//! Many fetches at once to one origin that has no idle connection for them.

use tokio::sync::watch;

use super::origin::{Gate, Step, ok};
use super::*;

/// More than may look for a connection at once.
const BURST: usize = 1000;

/// As in `gate`.
const AT_ONCE: usize = 512;

/// Lookups stand for connections: the client makes one with each.
struct Lookups {
    under_way: AtomicUsize,
    peak: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

impl Lookups {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            peak: watch::Sender::new(0),
            released: watch::Sender::new(false),
        })
    }

    /// None ends before all are released.
    fn lookup(self: &Arc<Self>) -> Lookup {
        let lookups = Arc::clone(self);
        Arc::new(move |_| {
            let lookups = Arc::clone(&lookups);
            Box::pin(async move {
                let now = lookups.under_way.fetch_add(1, SeqCst) + 1;
                lookups.peak.send_modify(|peak| *peak = now.max(*peak));
                let mut released = lookups.released.subscribe();
                let released = released.wait_for(|released| *released).await;
                drop(released.expect("the lookups outlive their users"));
                lookups.under_way.fetch_sub(1, SeqCst);
                Ok(vec![IpAddr::from([127, 0, 0, 1])])
            })
        })
    }
}

#[tokio::test]
async fn a_burst_opens_a_bounded_number_of_connections_at_a_time() {
    let origin = Origin::saying("x").await;
    let lookups = Lookups::new();
    let allowed = settings(&["burst.example", "127.0.0.1"]);
    let harness = Harness::with_lookup(&allowed, lookups.lookup());
    let url = origin.url("/").replace("127.0.0.1", "burst.example");
    let things = (0..BURST).map(|_| Thing::Fetch(get(&*url))).collect();

    let run = harness.run(Join::All, things);
    let release = async {
        let mut peak = lookups.peak.subscribe();
        let reached = timeout(LONG, peak.wait_for(|peak| *peak >= AT_ONCE)).await;
        drop(reached.expect("so many may begin at once"));
        lookups.released.send_replace(true);
    };
    let (results, ()) = tokio::join!(run, release);
    assert_eq!(results.len(), BURST);
    for result in results {
        assert_eq!(response(result).status, 200);
    }
    assert_eq!(*lookups.peak.borrow(), AT_ONCE);
}

#[tokio::test]
async fn fetches_that_get_no_connection_make_way_for_others() {
    let (_socket, url) = nobody();
    let harness = Harness::new();
    let things = (0..BURST).map(|_| Thing::Fetch(get(&*url))).collect();
    for result in harness.run(Join::All, things).await {
        assert_eq!(failure(result).phase, crate::plan::Phase::Connect);
    }
}

#[tokio::test]
async fn fetches_under_way_do_not_keep_others_from_connecting() {
    let gate = Gate::closed();
    let wait = gate.clone();
    let origin = Origin::start(move |_| {
        let mut steps = vec![Step::Wait(wait.clone())];
        steps.extend(ok("x"));
        steps
    })
    .await;
    let harness = Harness::new();
    let things = (0..AT_ONCE + 10).map(|n| Thing::Fetch(get(origin.url(&format!("/{n}")))));
    let run = harness.run(Join::All, things.collect());
    let all_are_in = async {
        for _ in 0..AT_ONCE + 10 {
            timeout(LONG, origin.request())
                .await
                .expect("all come before one is answered");
        }
        gate.open();
    };
    let (results, ()) = tokio::join!(run, all_are_in);
    for result in results {
        assert_eq!(response(result).status, 200);
    }
}
