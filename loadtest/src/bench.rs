//! A run: the chosen scenarios one after the other, bounded in time, with a report however it ends.

use crate::{
    arguments::Options,
    bars::Verdict,
    progress::Progress,
    report::{Ended, Report, Section},
    scenario::Scenario,
    stage::{Stage, said},
    stop::Stop,
};
use anyhow::Result;
use futures::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant as Clock},
};
use tokio::time::{Instant, sleep_until};

/// What shells answer for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// How long a scenario may go on after the time limit, to end the round it is in.
const GRACE: Duration = Duration::from_secs(300);

/// Runs the chosen scenarios. Fails when one of them failed, not when a bar was missed: bars are
/// judged by people, with the page before them.
pub async fn run(options: Options) -> Result<ExitCode> {
    let mut stop = Stop::listen()?;
    let options = Arc::new(options);
    let progress = Progress::new();
    let mut report = Report::new(&options);
    let started = Clock::now();
    let deadline = Instant::now() + Duration::from_secs(options.time_limit * 60);
    for scenario in options.chosen() {
        if Instant::now() >= deadline {
            report.scenarios.push(ended(scenario, Ended::OutOfTime));
            continue;
        }
        let section = play(scenario, &options, &progress, deadline, &mut stop).await;
        let is_over = section.ended == Ended::Interrupted;
        report.scenarios.push(section);
        if is_over {
            break;
        }
    }
    report.took_s = started.elapsed().as_secs_f64();
    progress.end();
    finish(&report, &options)
}

/// Plays one scenario to its end, to the time limit or to Ctrl-C. Whatever it started is gone
/// afterwards, since it ended or was dropped.
async fn play(
    scenario: Scenario,
    options: &Arc<Options>,
    progress: &Progress,
    deadline: Instant,
    stop: &mut Stop,
) -> Section {
    progress.scenario(scenario.name());
    let started = Clock::now();
    let section = ended(scenario, Ended::Complete);
    if options.is_external() && !scenario.suits_deployments() {
        let why = "it starts and kills processes, so it needs its own".to_owned();
        return Section { ended: Ended::Failed(why), ..section };
    }
    // A deployment's upstream that does not answer is waited for, and not for ever.
    let stage = tokio::select! {
        stage = Stage::new(options.clone(), progress.clone(), section, deadline) => stage,
        () = sleep_until(deadline) => return ended(scenario, Ended::OutOfTime),
        () = stop.asked() => return ended(scenario, Ended::Interrupted),
    };
    let mut stage = match stage {
        Ok(stage) => stage,
        Err(error) => return ended(scenario, Ended::Failed(format!("{error:#}"))),
    };
    let end = tokio::select! {
        played = AssertUnwindSafe(scenario.play(&mut stage)).catch_unwind() => match played {
            Ok(Ok(())) if stage.has_left_out => Ended::OutOfTime,
            Ok(Ok(())) => Ended::Complete,
            Ok(Err(error)) => Ended::Failed(format!("{error:#}")),
            Err(panic) => Ended::Failed(said(&*panic)),
        },
        () = sleep_until(deadline + GRACE) => Ended::OutOfTime,
        () = stop.asked() => Ended::Interrupted,
    };
    if let Ended::Failed(why) = &end {
        progress.told(&format!("{} failed: {why}", scenario.name()));
    }
    let mut section = stage.section;
    section.figures = scenario.figures(&section);
    section.ended = end;
    section.took_s = started.elapsed().as_secs_f64();
    section
}

fn ended(scenario: Scenario, end: Ended) -> Section {
    let mut section = Section {
        scenario: scenario.name().to_owned(),
        about: scenario.about().to_owned(),
        ended: end,
        ..Section::default()
    };
    section.figures = scenario.figures(&section);
    section
}

fn finish(report: &Report, options: &Options) -> Result<ExitCode> {
    let files = report.write(&options.out)?;
    print!("{}", report.text());
    for file in files {
        println!("{}", file.display());
    }
    let count = |verdict| report.figures().filter(|figure| figure.verdict() == verdict).count();
    let failed = |section: &&Section| matches!(section.ended, Ended::Failed(_));
    if report.scenarios.iter().any(|section| section.ended == Ended::Interrupted) {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if let Some(section) = report.scenarios.iter().find(failed) {
        eprintln!("{}: {}", section.scenario, section.ended.text());
        return Ok(ExitCode::FAILURE);
    }
    eprintln!("{} bars missed, {} failed", count(Verdict::Missed), count(Verdict::Failed));
    Ok(ExitCode::SUCCESS)
}
