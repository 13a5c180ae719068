//! What it costs that no answer leaves before the token knows of its commit.

use crate::appliance::Appliance;
use crate::report::Report;
use crate::{Course, Outcome, Plan, machine};

/// Each point of an appliance whose anchor follows at intervals, and then of one whose answers wait for it: the machine may
/// be busy, but with the same for both.
pub fn measure(plan: &Plan, by_interval: &Appliance, by_commit: &Appliance) -> Outcome<Report> {
    let machine = machine::describe(by_interval.folder())?;
    let mut report = Report::new(machine, by_interval.custodians());
    let (mut without, mut with) = (Course::new(by_interval)?, Course::new(by_commit)?);
    for (http, connections) in &plan.points {
        without.verify(plan, *http, *connections)?.into_iter().for_each(|point| report.add(point));
        let [.., verified] = with.verify(plan, *http, *connections)?;
        report.add(verified.named("anchored"));
    }
    Ok(report)
}
