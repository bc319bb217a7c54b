//! One suite of what a store must do, run in memory, on a directory and on a real S3.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests, outside of test functions.

mod bench;
mod blobs;
mod damage;
mod leftovers;
mod lists;
mod manifests;
mod outages;
mod races;
mod records;
mod served;
mod spooled;
mod tags;

use bench::Bench;
use futures::future::try_join_all;
use hydrant_store::Store;
use hydrant_testkit::SeaweedFs;
use std::sync::Arc;

/// Runs every test of the suite, each in a place of its own.
macro_rules! run {
    ($bench:expr; $($test:path),+ $(,)?) => {
        $(
            eprintln!("running {}", stringify!($test));
            let bench: Bench = $bench;
            $test(&bench).await;
            bench.leaves_nothing_open().await;
        )+
    };
}

macro_rules! suite {
    ($bench:expr) => {
        run! {
            $bench;
            blobs::a_blob_is_read_back_whole_and_in_parts,
            blobs::an_empty_blob_is_a_blob,
            blobs::a_blob_of_many_parts_is_read_back,
            blobs::wrong_bytes_are_never_visible,
            blobs::a_failed_write_leaves_what_is_there,
            blobs::an_aborted_or_dropped_blob_leaves_nothing,
            blobs::a_caller_that_goes_away_leaves_nothing_open,
            lists::tags_and_repositories_come_in_pages,
            lists::a_repository_without_manifests_is_not_listed,
            manifests::a_staged_manifest_is_visible_only_after_its_commit,
            manifests::a_manifest_that_was_not_staged_cannot_be_committed,
            manifests::referrers_are_found_once_visible,
            races::one_of_many_creators_wins,
            races::one_of_many_successors_wins,
            races::two_handles_decide_the_same_race,
            races::of_three_writers_of_a_blob_none_leaves_it_cut_off,
            records::misses_are_kept_until_forgotten,
            records::what_is_missed_of_a_tag_that_moved_is_another_miss,
            records::recording_and_forgetting_at_once_loses_nothing,
            records::an_older_completion_never_replaces_a_newer,
            records::dead_letters_are_kept_until_dropped,
            spooled::a_blob_in_memory_is_stored_by_its_seal_only,
            spooled::a_spooled_blob_is_stored_once_it_is_sealed,
            spooled::what_was_sealed_is_all_that_can_be_stored,
            tags::a_tag_moves_only_from_what_was_seen,
            tags::a_tombstone_takes_the_links_away,
            tags::racing_writers_leave_the_link_of_the_winner,
            tags::a_tag_of_a_stock_registry_is_adopted_as_pushed,
            tags::a_link_left_behind_is_mended,
            probe_accepts,
        }
    };
}

async fn probe_accepts(bench: &Bench) {
    let processes: Vec<_> = (0..4).map(|_| bench.another()).collect();
    let ids = try_join_all(processes.iter().map(Store::probe)).await.unwrap();
    let stays = bench.store.probe().await.unwrap();
    assert!(ids.iter().all(|id| *id == stays), "{ids:?}");
    let left: Vec<_> = bench.objects().await.into_keys().filter(|k| k.contains("probe")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_holds_in_memory() {
    suite!(Bench::in_memory());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_holds_on_a_directory() {
    suite!(Bench::on_directory());
    run! {
        Bench::on_directory();
        damage::a_flipped_manifest_is_quarantined_and_can_be_written_again,
        damage::a_flipped_small_blob_counts_as_absent,
        damage::a_flipped_large_blob_never_ends_cleanly_and_is_quarantined,
        damage::a_flipped_blob_is_quarantined_though_only_a_part_is_read,
        damage::a_short_or_empty_object_counts_as_absent,
        damage::a_damaged_tag_record_gives_way_to_the_link_and_is_replaced,
        damage::a_damaged_tag_record_without_a_link_is_replaced,
        damage::a_damaged_record_of_a_push_stays_a_push,
        damage::a_damaged_record_of_a_job_does_not_block_it,
        tags::a_lost_line_of_the_history_is_put_in_by_who_comes_next,
        leftovers::staged_files_of_a_killed_process_are_swept,
        spooled::a_spool_file_on_the_same_file_system_is_not_copied,
        spooled::a_file_that_cannot_be_named_is_copied,
        races::two_processes_decide_the_same_race,
        served::a_stock_registry_serves_what_was_stored,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_suite_holds_on_s3() {
    let server = Arc::new(SeaweedFs::start().await);
    suite!(Bench::on_s3(&server));
    run! {
        Bench::on_s3(&server);
        damage::a_flipped_manifest_is_quarantined_and_can_be_written_again,
        damage::a_flipped_small_blob_counts_as_absent,
        damage::a_flipped_large_blob_never_ends_cleanly_and_is_quarantined,
        damage::a_flipped_blob_is_quarantined_though_only_a_part_is_read,
        damage::a_short_or_empty_object_counts_as_absent,
        damage::a_damaged_tag_record_gives_way_to_the_link_and_is_replaced,
        damage::a_damaged_tag_record_without_a_link_is_replaced,
        damage::a_damaged_record_of_a_job_does_not_block_it,
        tags::a_lost_line_of_the_history_is_put_in_by_who_comes_next,
        leftovers::open_uploads_of_a_killed_process_are_swept,
        served::a_presigned_url_gives_the_blob_to_anybody,
        served::a_stock_registry_serves_what_was_stored,
    }
    run! {
        Bench::on_s3_unsigned(&server);
        blobs::a_blob_of_many_parts_is_read_back,
        spooled::a_spooled_blob_is_stored_once_it_is_sealed,
        probe_accepts,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_s3_does_once_a_year_does_no_harm() {
    let server = Arc::new(SeaweedFs::start().await);
    // Most of it is waiting for the retries of the client library.
    tokio::join!(
        outages::a_write_that_is_refused_leaves_nothing(&server),
        outages::a_write_whose_answer_is_lost_is_known_for_our_own(&server),
        outages::a_completion_that_fails_shows_nothing(&server),
        outages::what_is_damaged_on_the_way_is_not_given_out_and_not_blamed(&server),
    );
}
