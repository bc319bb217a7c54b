//! Which webhooks are served in this process: begins and ends them as the resources say.

use crate::{
    Context,
    disable::Disabler,
    endpoint::{Endpoint, Past},
};
use hydrant_boot::{Check, EditError, Importance};
use hydrant_bus::{Bus, BusError, Consumer};
use hydrant_proto::Event;
use hydrant_rules::{Name, Resources, Webhook};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// How often the tasks are looked at when nothing happens.
const LOOK: Duration = Duration::from_secs(10);
/// Pause before a consumer is asked for again.
const ATTACH_AGAIN: Duration = Duration::from_millis(500);

/// The webhooks being served.
pub struct Endpoints {
    context: Context,
    disabler: Disabler,
    running: HashMap<Name, Running>,
    /// Stopped, with deliveries under way.
    leaving: Vec<AbortOnDropHandle<()>>,
    past: Past,
    check: Check,
    /// Rung when a consumer is there.
    attached: Arc<Notify>,
    /// Whether consumers of webhooks that are gone may be left on the bus.
    unswept: bool,
}

struct Running {
    webhook: Webhook,
    attached: Arc<AtomicBool>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Endpoints {
    pub fn new(context: &Context) -> Self {
        Self {
            disabler: Disabler::new(context.editor.clone()),
            running: HashMap::new(),
            leaving: Vec::new(),
            past: Past::Logged,
            check: context.readiness.check("webhooks", Importance::AtStart),
            attached: Arc::new(Notify::new()),
            unswept: true,
            context: context.clone(),
        }
    }

    /// Serves exactly the enabled webhooks of `resources`. One that changed is begun anew; what it
    /// had under way is finished beside.
    pub fn follow(&mut self, resources: &Resources) {
        let wanted: HashMap<_, _> = resources
            .webhook
            .iter()
            .filter(|webhook| webhook.disabled.is_none())
            .map(|webhook| (&webhook.name, webhook))
            .collect();
        let as_wanted = |(name, running): &(&Name, &Running)| {
            wanted.get(name) == Some(&&running.webhook) && !running.task.is_finished()
        };
        let ended = self.running.iter().filter(|one| !as_wanted(one));
        for name in ended.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.end(&name);
        }
        for (name, webhook) in wanted {
            if !self.running.contains_key(name) {
                self.begin(webhook.clone());
            }
        }
        self.leaving.retain(|task| !task.is_finished());
        self.past = Past::None;
        self.show();
    }

    /// Looks after what runs, until it is time to look at the resources again.
    pub async fn tend(&mut self) {
        let again = sleep(LOOK);
        if self.unswept && *self.context.bus.connected().borrow() {
            self.sweep().await;
        }
        tokio::select! {
            () = again => {}
            () = self.attached.notified() => {}
        }
    }

    /// Ends all of them and waits until they have finished what was under way.
    pub async fn stop(mut self) {
        let names: Vec<_> = self.running.keys().cloned().collect();
        for name in names {
            self.end(&name);
        }
        for task in self.leaving {
            // A panic was logged by its task's runtime; nothing is left to be done about it.
            let _ = task.await;
        }
    }

    fn begin(&mut self, webhook: Webhook) {
        let Context { bus, store, settings, .. } = &self.context;
        let name = webhook.name.clone();
        let disabler = self.disabler.clone();
        let endpoint =
            Endpoint::new(webhook.clone(), bus.clone(), store.clone(), disabler, settings.clone());
        let endpoint = match endpoint {
            Ok(endpoint) => Arc::new(endpoint),
            Err(error) => {
                return tracing::error!(webhook = %name, %error, "cannot serve the webhook");
            }
        };
        let (stop, attached) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let serving = serve(
            endpoint,
            bus.clone(),
            self.past,
            Attached { flag: Arc::clone(&attached), bell: Arc::clone(&self.attached) },
            stop.clone(),
        );
        let task = AbortOnDropHandle::new(tokio::spawn(serving));
        tracing::info!(webhook = %name, "serving webhook");
        self.running.insert(name, Running { webhook, attached, stop, task });
    }

    fn end(&mut self, name: &Name) {
        let Some(Running { stop, task, .. }) = self.running.remove(name) else { return };
        tracing::info!(webhook = %name, "no longer serving webhook as it was");
        stop.cancel();
        self.leaving.push(task);
        self.unswept = true;
    }

    /// Ready once nothing published from here on can be missed.
    fn show(&self) {
        let open =
            self.running.iter().find(|(_, running)| !running.attached.load(Ordering::Acquire));
        match open {
            None => self.check.ok(),
            Some((name, _)) => {
                self.check.fail(format!("webhook {name} is not attached to the bus"))
            }
        }
    }

    /// Removes the consumers of webhooks that are neither in the shared resources nor here. What
    /// this process believes is not enough: another may have seen a newer webhook first.
    async fn sweep(&mut self) {
        match self.swept().await {
            Ok(()) => self.unswept = false,
            Err(error) => tracing::debug!(error, "cannot remove consumers yet"),
        }
    }

    async fn swept(&self) -> Result<(), String> {
        let shared = self.context.editor.read().await.map_err(|e: EditError<()>| e.to_string())?;
        let here = self.context.feed.current();
        let webhooks = shared.0.webhook.iter().chain(&here.resources().webhook);
        let names: Vec<_> = webhooks.map(|webhook| webhook.name.as_str()).collect();
        self.context.bus.retain_webhooks(&names).await.map_err(|e: BusError| e.to_string())
    }
}

struct Attached {
    flag: Arc<AtomicBool>,
    bell: Arc<Notify>,
}

async fn serve(
    endpoint: Arc<Endpoint>,
    bus: Bus,
    past: Past,
    attached: Attached,
    stop: CancellationToken,
) {
    let attaching = async {
        loop {
            match attach(&bus, endpoint.name()).await {
                Ok(consumer) => return consumer,
                Err(error) => tracing::debug!(%error, "cannot attach to the bus yet"),
            }
            sleep(ATTACH_AGAIN).await;
        }
    };
    let Some(consumer) = stop.run_until_cancelled(attaching).await else { return };
    attached.flag.store(true, Ordering::Release);
    attached.bell.notify_one();
    // Boxed: it is as large as a delivery, and this future is moved before it comes to that.
    Box::pin(endpoint.serve(consumer, past, stop)).await;
}

/// The webhook's consumer. Where there is none yet it begins when the resources were last written,
/// so that nothing is missed between the writing of a webhook and this moment.
async fn attach(bus: &Bus, webhook: &str) -> Result<Consumer<Event>, BusError> {
    let mut consumer = bus.event_deliveries(webhook);
    if let Some(document) = bus.resources().load().await? {
        consumer = consumer.since(document.written_at);
    }
    consumer.attach().await?;
    Ok(consumer)
}
