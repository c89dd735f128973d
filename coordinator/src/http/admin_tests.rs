//! `/v1/admin` over real connections, in front of a scheduler that computes nothing.

use serde_json::Value;

use super::tests::{Script, Server};
use crate::keys::tests::key;
use crate::keys::{Key, Keys, Scope};

async fn ask(server: &Server, line: &str, secret: &str) -> (u16, Value) {
    let (method, path) = line.split_once(' ').unwrap();
    let answer = server.call_as(secret, method, path).await;
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

#[tokio::test]
async fn operators_see_the_cluster_and_relieve_nodes_and_nobody_else_does() {
    let keys =
        vec![key("anna", "sk-anna"), Key { scopes: vec![Scope::Admin], ..key("ops", "sk-ops") }];
    let server =
        Server::with(|_| Script::Say(Vec::new()), |served| served.keys = Keys::of(keys)).await;
    for line in ["GET /v1/admin/status", "POST /v1/admin/drain/0000000000000001", "GET /v1/admin/x"]
    {
        let (status, error) = ask(&server, line, "sk-anna").await;
        assert_eq!(
            (status, &error["error"]["code"]),
            (403, &"insufficient_scope".into()),
            "{line}"
        );
        assert_eq!(ask(&server, line, "sk-nobody").await.0, 401);
    }
    let (status, said) = ask(&server, "GET /v1/admin/status", "sk-ops").await;
    assert_eq!((status, &said["load"]["running"]), (200, &0.into()), "{said}");
    let (status, said) = ask(&server, "POST /v1/admin/cordon/00000000000000ff", "sk-ops").await;
    assert_eq!((status, &said["duty"]), (200, &"cordoned".into()), "{said}");
    for name in ["x", "00", "%2f", "0000000000000001x"] {
        let (status, error) = ask(&server, &format!("POST /v1/admin/drain/{name}"), "sk-ops").await;
        assert_eq!((status, &error["error"]["code"]), (404, &"node_not_found".into()), "{name}");
    }
    assert_eq!(ask(&server, "GET /v1/admin/drain/x", "sk-ops").await.0, 405);
}

#[tokio::test]
async fn what_is_open_to_all_has_operators_with_keys_only() {
    for (allow_anonymous, expected) in [(false, 200), (true, 403)] {
        let server = Server::with(
            |_| Script::Say(Vec::new()),
            |served| served.config.allow_anonymous = allow_anonymous,
        );
        let server = server.await;
        assert_eq!(ask(&server, "GET /v1/admin/status", "").await.0, expected);
        assert_eq!(ask(&server, "GET /v1/models", "").await.0, 200);
    }
}
