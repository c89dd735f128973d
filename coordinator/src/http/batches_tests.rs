//! Files and batches over real connections.

use serde_json::{Value, json};

use super::tests::{Response, Script, Server};

const BOUNDARY: &str = "x-boundary-x";

/// A form as clients send it.
fn form(fields: &[(&str, &str)], file: Option<&str>) -> Vec<u8> {
    let mut form = String::new();
    for (name, value) in fields {
        let disposition = format!("content-disposition: form-data; name=\"{name}\"");
        form += &format!("--{BOUNDARY}\r\n{disposition}\r\n\r\n{value}\r\n");
    }
    if let Some(bytes) = file {
        let disposition = "content-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"";
        form += &format!("--{BOUNDARY}\r\n{disposition}\r\n\r\n{bytes}\r\n");
    }
    (form + &format!("--{BOUNDARY}--\r\n")).into_bytes()
}

async fn upload(server: &Server, form: &[u8]) -> Response {
    let line = format!(
        "/v1/files HTTP/1.1\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\nx-rest: "
    );
    server.call("POST", &line, form).await
}

async fn server() -> Server {
    Server::start(|_| Script::Say(Vec::new())).await
}

async fn hand_in(server: &Server, bytes: &str) -> String {
    let file = upload(server, &form(&[("purpose", "batch")], Some(bytes))).await;
    assert_eq!(file.status, 200, "{}", file.body);
    file.json()["id"].as_str().unwrap().to_owned()
}

fn asks(file: &str) -> Value {
    json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"})
}

#[tokio::test]
async fn a_file_is_handed_in_shown_read_in_parts_and_deleted() {
    let server = server().await;
    let expiry = [("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3600")];
    let fields = [("purpose", "batch"), expiry[0], expiry[1]];
    let file = upload(&server, &form(&fields, Some("line 1\nline 2"))).await;
    assert_eq!(file.status, 200, "{}", file.body);
    let file = file.json();
    let id = file["id"].as_str().unwrap();
    assert!(id.starts_with("file-"));
    let said = (&file["object"], &file["bytes"], &file["filename"], &file["purpose"]);
    assert_eq!(said, (&json!("file"), &json!(13), &json!("in.jsonl"), &json!("batch")));
    assert_eq!(file["status"], "processed");
    let kept_s = file["expires_at"].as_i64().unwrap() - file["created_at"].as_i64().unwrap();
    assert_eq!(kept_s, 3600);
    let path = format!("/v1/files/{id}");
    assert_eq!(server.get(&path).await.json(), file);
    let all = server.get(&format!("{path}/content")).await;
    assert_eq!((all.status, all.body.as_str()), (200, "line 1\nline 2"));
    let part = format!("{path}/content HTTP/1.1\r\nrange: bytes=5-8\r\nx-rest: ");
    let part = server.call("GET", &part, b"").await;
    assert_eq!((part.status, part.body.as_str()), (206, "1\nli"));
    assert_eq!(part.header("content-range"), Some("bytes 5-8/13"));
    let beyond = format!("{path}/content HTTP/1.1\r\nrange: bytes=99-\r\nx-rest: ");
    assert_eq!(server.call("GET", &beyond, b"").await.status, 416);
    let listed = server.get("/v1/files").await.json();
    assert_eq!((&listed["data"], &listed["has_more"]), (&json!([file]), &json!(false)));
    assert_eq!(server.get("/v1/files?purpose=fine-tune").await.json()["data"], json!([]));
    let deleted = server.call("DELETE", &path, b"").await.json();
    assert_eq!(deleted, json!({"id": id, "object": "file", "deleted": true}));
    let gone = server.get(&path).await;
    assert_eq!((gone.status, &gone.json()["error"]["code"]), (404, &json!("file_not_found")));
}

#[tokio::test]
async fn what_is_no_file_for_a_batch_is_refused_by_name_and_leaves_nothing() {
    let server = Server::with(
        |_| Script::Say(Vec::new()),
        |served| {
            served.batch.max_file_bytes = 20;
        },
    );
    let server = server.await;
    let batch = ("purpose", "batch");
    for (form, status, param) in [
        (form(&[("purpose", "assistants")], Some("x")), 400, "purpose"),
        (form(&[], Some("x")), 400, "purpose"),
        (form(&[batch], None), 400, "file"),
        (form(&[batch, ("wibble", "1")], Some("x")), 400, "wibble"),
        (form(&[batch, ("expires_after[seconds]", "9")], Some("x")), 400, "expires_after"),
        (form(&[batch, ("expires_after[anchor]", "created_at")], Some("x")), 400, "expires_after"),
        (form(&[batch], Some(&"x".repeat(21))), 413, "file"),
    ] {
        let refused = upload(&server, &form).await;
        assert_eq!(refused.status, status, "{}", refused.body);
        assert_eq!(refused.json()["error"]["param"], param, "{}", refused.body);
    }
    assert_eq!(server.post("/v1/files", &json!({})).await.status, 400);
    assert_eq!(server.get("/v1/files").await.json()["data"], json!([]));
    let left = std::fs::read_dir(server.data.path().join("blobs")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_batch_is_made_shown_listed_and_cancelled() {
    let server = server().await;
    let file = hand_in(&server, "{}\n").await;
    let mut more = asks(&file);
    more["metadata"] = json!({"run": "7"});
    let made = server.post("/v1/batches", &more).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let made = made.json();
    assert_eq!((&made["object"], &made["status"]), (&json!("batch"), &json!("validating")));
    assert_eq!((&made["metadata"], &made["model"]), (&json!({"run": "7"}), &json!("m")));
    assert_eq!(made["expires_at"].as_i64().unwrap() - made["created_at"].as_i64().unwrap(), 86_400);
    for name in ["errors", "output_file_id", "error_file_id", "in_progress_at", "cancelled_at"] {
        assert_eq!(made.get(name), Some(&Value::Null), "{name}");
    }
    assert_eq!(made["request_counts"], json!({"total": 0, "completed": 0, "failed": 0}));
    assert_eq!(made["usage"]["input_tokens_details"]["cached_tokens"], 0);
    let path = format!("/v1/batches/{}", made["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), made);
    let second = server.post("/v1/batches", &asks(&file)).await.json();
    let page = server.get("/v1/batches?limit=1").await.json();
    assert_eq!((&page["data"], &page["has_more"]), (&json!([second]), &json!(true)));
    let next = format!("/v1/batches?limit=1&after={}", second["id"].as_str().unwrap());
    assert_eq!(server.get(&next).await.json()["data"][0]["id"], made["id"]);
    assert_eq!(server.get("/v1/batches?limit=0").await.status, 400);
    let end = format!("/v1/batches?after={}", made["id"].as_str().unwrap());
    assert_eq!(server.get(&end).await.json()["data"], json!([]));
    for gone in ["/v1/batches?after=batch_x", "/v1/files?after=file-x"] {
        assert_eq!(server.get(gone).await.status, 404, "{gone}");
    }
    let cancelled = server.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelling")));
    assert_eq!(server.get("/v1/batches/batch_x").await.status, 404);
}

#[tokio::test]
async fn a_batch_of_what_is_no_input_is_refused() {
    let server = Server::with(|_| Script::Say(Vec::new()), |served| served.batch.max_open_jobs = 1);
    let server = server.await;
    let refused = server.post("/v1/batches", &asks("file-x")).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("file_not_found")));
    let file = hand_in(&server, "{}").await;
    let mut other = asks(&file);
    other["endpoint"] = json!("/v1/embeddings");
    assert_eq!(server.post("/v1/batches", &other).await.status, 400);
    assert_eq!(server.post("/v1/batches", &asks(&file)).await.status, 200);
    let many = server.post("/v1/batches", &asks(&file)).await;
    assert_eq!((many.status, &many.json()["error"]["code"]), (429, &json!("too_many_batches")));
    // The job needs the bytes, whatever becomes of the file.
    server.call("DELETE", &format!("/v1/files/{file}"), b"").await;
    let left = std::fs::read_dir(server.data.path().join("blobs")).unwrap();
    assert_eq!(left.count(), 1);
}

#[tokio::test]
async fn a_batch_over_rows_is_made_of_a_file_of_rows_and_says_how_they_are_asked_for() {
    let server = server().await;
    let fields = [("purpose", "rows")];
    let file = upload(&server, &form(&fields, Some("{\"text\": \"a\"}\n"))).await;
    assert_eq!((file.status, &file.json()["purpose"]), (200, &json!("rows")), "{}", file.body);
    let file = file.json()["id"].as_str().unwrap().to_owned();
    let mut asked = asks(&file);
    let refused = server.post("/v1/batches", &asked).await;
    assert_eq!(refused.json()["error"]["code"], "invalid_purpose", "{}", refused.body);
    asked["rows"] = json!({"template": "{{ text"});
    let refused = server.post("/v1/batches", &asked).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("rows.template")));
    asked["rows"] = json!({"template": "Say {{ text }}"});
    let made = server.post("/v1/batches", &asked).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let rows = json!({"template": {"prompt": "Say {{ text }}", "model": "m"}, "format": "jsonl"});
    let made = made.json();
    assert_eq!(made["rows"], rows);
    let path = format!("/v1/batches/{}", made["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), made);
    let lines = hand_in(&server, "{}").await;
    let mut of_lines = asks(&lines);
    of_lines["rows"] = asked["rows"].clone();
    let refused = server.post("/v1/batches", &of_lines).await;
    assert_eq!(refused.json()["error"]["code"], "invalid_purpose", "{}", refused.body);
}
