//! Number 10: over HTTP/2, a request is sent again if, and only if, its upstream says that it has
//! not processed the request.

use std::time::Duration;

use super::{BODY, turn, two};
use crate::world::cluster::Running;
use crate::world::http2::{
    CANCEL, ENHANCE_YOUR_CALM, INTERNAL_ERROR, NO_ERROR, Part, REFUSED_STREAM, Upstream, served,
};
use crate::world::simulator::siblings;
use crate::world::waiting::Budget;
use crate::world::wire::ask;

async fn cluster(upstream: &Upstream) -> Running {
    two()
        .keys(siblings("org-a", 1))
        .upstream_at(&upstream.url())
        .upstream("http2 = true\n")
        .start()
        .await
}

#[tokio::test]
async fn unprocessed_turn_is_sent_again_unseen() {
    for acts in [
        vec![vec![Part::Reset(REFUSED_STREAM)], served()],
        vec![vec![Part::Leave(NO_ERROR)], served()],
        vec![vec![Part::Leave(ENHANCE_YOUR_CALM)], served()],
        vec![vec![Part::Reset(REFUSED_STREAM)], vec![Part::Leave(NO_ERROR)], served()],
    ] {
        let upstream = Upstream::start(acts.clone()).await;
        let cluster = cluster(&upstream).await;
        let answer = ask(cluster.address(), &turn(BODY)).await;
        assert_eq!(answer.status, 200, "{acts:?}: {}", answer.text());
        let bodies = upstream.bodies();
        assert_eq!(bodies.len(), acts.len(), "{acts:?}");
        assert!(bodies.iter().all(|body| body == BODY.as_bytes()), "the same bytes");
    }
}

#[tokio::test]
async fn turn_that_may_have_been_processed_is_not_sent_again() {
    for act in [
        vec![Part::Reset(CANCEL)],
        vec![Part::Reset(INTERNAL_ERROR)],
        vec![Part::LeaveAfter(NO_ERROR), Part::Close],
        vec![Part::LeaveAfter(INTERNAL_ERROR), Part::Close],
    ] {
        let upstream = Upstream::start(vec![act.clone(), served()]).await;
        let cluster = cluster(&upstream).await;
        let answer = ask(cluster.address(), &turn(BODY)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "upstream_interrupted"),
            "{act:?}"
        );
        assert_eq!(upstream.bodies().len(), 1, "{act:?}");
    }
}

#[tokio::test]
async fn turn_that_is_refused_for_ever_ends_soon() {
    for act in [vec![Part::Reset(REFUSED_STREAM)], vec![Part::Leave(NO_ERROR)]] {
        let upstream = Upstream::start(vec![act.clone()]).await;
        let cluster = cluster(&upstream).await;
        let budget = Budget::begin(Duration::from_secs(10));
        let answer = ask(cluster.address(), &turn(BODY)).await;
        budget.holds("an end of refusals");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_unreachable"),
            "{act:?}"
        );
        assert!(upstream.bodies().len() <= 8, "{act:?}: {}", upstream.bodies().len());
    }
}
