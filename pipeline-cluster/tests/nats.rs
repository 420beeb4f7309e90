//! Nodes that are connected by a real server.
#![cfg(all(feature = "redis", feature = "nats", unix))]

mod nodes;

use pipeline_test_support::servers::Kind;

const KIND: Kind = Kind::Nats;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcasts_reach_the_subscribers_of_all_nodes() {
    nodes::broadcasts(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_receives_the_topics_that_have_subscribers_on_it() {
    nodes::interest(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_given_up_and_wanted_again_a_thousand_times_has_no_gap() {
    nodes::wanted_again(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_other_nodes_are_pushed_to_timed_and_disconnected() {
    nodes::clients(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_of_a_pipeline_is_timed_on_all_nodes_and_one_for_here_stays() {
    nodes::pushes(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_each_topic_of_each_node_keeps_its_order() {
    nodes::order(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_down_nodes_serve_their_own_and_gaps_are_seen_after_it() {
    nodes::restart(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_and_nothing_arrives_twice() {
    nodes::frozen(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_later_is_connected_to() {
    nodes::absent(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_refuse_what_has_no_room() {
    nodes::refusal(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presences_of_five_processes_are_one_list_and_a_dead_one_leaves_once() {
    let test = "presences_of_five_processes_are_one_list_and_a_dead_one_leaves_once";
    nodes::presence(KIND, test).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_serves_its_own_and_comes_back() {
    nodes::faults::netsplit(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_receives_slowly_keeps_its_connection_and_misses_nothing() {
    nodes::faults::slow(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_server_delays_no_subscriber_on_the_node_and_what_it_does_not_take_is_counted() {
    nodes::faults::slow_server(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_frozen_node_leave_once_and_join_once_when_it_runs_again() {
    let test = "users_of_a_frozen_node_leave_once_and_join_once_when_it_runs_again";
    nodes::faults::frozen_node(KIND, test).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_started_again_replaces_its_former_self_at_once() {
    let test = "a_node_that_is_started_again_replaces_its_former_self_at_once";
    nodes::faults::restarted_node(KIND, test).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_stopped_users_of_other_nodes_have_left() {
    nodes::faults::stopped_server(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_in_time_lets_no_user_leave() {
    nodes::faults::restarted_server(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_a_topic_has_subscribers_is_known_across_nodes() {
    nodes::faults::listening(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polling_client_is_served_by_either_node() {
    nodes::polling(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broadcast_right_after_a_join_was_answered_arrives() {
    nodes::joins(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_is_answered_although_the_server_does_not_answer_or_is_away() {
    nodes::joins_of_a_node_alone(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_during_an_outage_arrives_at_nodes_that_come_back_later() {
    nodes::outage(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_with_prefixes_of_their_own_share_nothing() {
    nodes::applications(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_is_no_older_than_a_period() {
    nodes::faults::age(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_may_not_receive_is_not_connected_and_what_one_may_not_send_is_counted() {
    nodes::permissions().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_listens_to_all_subjects_cuts_off_no_node() {
    nodes::audited().await;
}
