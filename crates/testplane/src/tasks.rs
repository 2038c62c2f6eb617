//! The background tasks of one fake, ended when the fake is dropped.
//!
//! hyper wants an executor for the streams of an HTTP/2 connection, and listeners need a task for each connection; none
//! of them may outlive the test that started it.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns the tasks: dropping it ends them at their next await.
pub(crate) struct Tasks {
    executor: Executor,
}

/// Starts tasks on behalf of a [`Tasks`], without keeping them alive.
#[derive(Clone)]
pub(crate) struct Executor {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self { executor: Executor { tracker: TaskTracker::new(), stop: CancellationToken::new() } }
    }

    pub(crate) fn executor(&self) -> Executor {
        self.executor.clone()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.executor.stop.cancel();
    }
}

impl Executor {
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled_owned(task).await;
        });
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
