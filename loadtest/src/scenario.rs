//! What can be run. Each scenario measures in rounds and makes its figures from what is in the
//! report, so an interrupted one has figures of the rounds it had.

mod brownout;
mod clients;
mod cold;
mod herd;
mod hydrate;
mod idle;
mod pipeline;
mod scale;
mod smoke;
mod soak;
mod warm;

use crate::{bars::Figure, report::Section, stage::Stage};
use anyhow::Result;
use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// One client, nothing cached: small, 350 MiB and 2 GiB images
    Cold,
    /// Many clients at once, nothing cached, several frontends
    Herd,
    /// Everything cached: manifests, blobs, ranges, streamed and redirected
    Warm,
    /// Making images durable that nobody waits for
    Hydrate,
    /// Tiny images from the miss to the webhook
    Pipeline,
    /// Warm traffic while an upstream fails, or a herd is cold
    Brownout,
    /// The same work on 1 to 16 importers
    Scale,
    /// Doing nothing
    Idle,
    /// Mixed traffic with kills, and rest afterwards
    Soak,
    /// A minute of everything, judged by counts alone
    Smoke,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Herd => "herd",
            Self::Warm => "warm",
            Self::Hydrate => "hydrate",
            Self::Pipeline => "pipeline",
            Self::Brownout => "brownout",
            Self::Scale => "scale",
            Self::Idle => "idle",
            Self::Soak => "soak",
            Self::Smoke => "smoke",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Self::Cold => "One client pulls what nobody has pulled before.",
            Self::Herd => "Many clients pull the same at once, through several frontends.",
            Self::Warm => "Clients read what is cached.",
            Self::Hydrate => "Images are made durable that no client waits for.",
            Self::Pipeline => "Tiny images, from the miss through queue and import to the webhook.",
            Self::Brownout => {
                "Warm traffic goes on while another upstream fails or a herd is cold."
            }
            Self::Scale => "The same images, made durable by more and more importers.",
            Self::Idle => "Nothing is asked.",
            Self::Soak => "Mixed traffic while processes are killed, and rest afterwards.",
            Self::Smoke => "A little of everything, judged by counts alone.",
        }
    }

    /// Whether it is run when nothing is named.
    pub fn is_usual(self) -> bool {
        !matches!(self, Self::Soak | Self::Smoke)
    }

    /// Whether it can be run against processes of somebody else.
    pub fn suits_deployments(self) -> bool {
        match self {
            Self::Cold | Self::Herd | Self::Warm | Self::Hydrate => true,
            Self::Pipeline | Self::Brownout | Self::Scale => false,
            Self::Idle | Self::Soak | Self::Smoke => false,
        }
    }

    pub async fn play(self, stage: &mut Stage) -> Result<()> {
        match self {
            Self::Cold => cold::play(stage).await,
            Self::Herd => herd::play(stage).await,
            Self::Warm => warm::play(stage).await,
            Self::Hydrate => hydrate::play(stage).await,
            Self::Pipeline => pipeline::play(stage).await,
            Self::Brownout => brownout::play(stage).await,
            Self::Scale => scale::play(stage).await,
            Self::Idle => idle::play(stage).await,
            Self::Soak => soak::play(stage).await,
            Self::Smoke => smoke::play(stage).await,
        }
    }

    /// The figures of its bars, as far as it came.
    pub fn figures(self, section: &Section) -> Vec<Figure> {
        match self {
            Self::Cold => cold::figures(section),
            Self::Herd => herd::figures(section),
            Self::Warm => warm::figures(section),
            Self::Hydrate => hydrate::figures(section),
            Self::Pipeline => pipeline::figures(section),
            Self::Brownout => brownout::figures(section),
            Self::Scale => scale::figures(section),
            Self::Idle => idle::figures(section),
            Self::Soak | Self::Smoke => Vec::new(),
        }
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
