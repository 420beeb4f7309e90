//! Nodes that are connected by a real server.
#![cfg(all(feature = "redis", feature = "nats", unix))]

mod nodes;

use pipeline_test_support::servers::Kind;

const KIND: Kind = Kind::Redis;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broadcasts_reach_the_subscribers_of_all_nodes() {
    nodes::broadcasts(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_receives_the_topics_that_have_subscribers_on_it() {
    nodes::interest(KIND).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_other_nodes_are_pushed_to_timed_and_disconnected() {
    nodes::clients(KIND).await;
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
