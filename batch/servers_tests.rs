//! Databases and a store of objects as they are: servers that the test starts, as users of their
//! own where it may. Where one isn't installed the test says so.
#![cfg(unix)]

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use nix::unistd::{Uid, User, chown};
use serde_json::Value;

use crate::address::Dialect;
use crate::answerer::{Answerer, Failed};
use crate::database::Connection;
use crate::http::{Asked, Http};
use crate::template::Request;
use crate::testing::{Stub, Trial};

/// A server of its own, which can be killed and started again.
struct Server {
    folder: tempfile::TempDir,
    user: Option<User>,
    program: PathBuf,
    arguments: Vec<String>,
    port: u16,
    process: Option<Child>,
}

impl Server {
    fn new(user: &str, program: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // These servers refuse to be root.
        let user = Uid::effective().is_root().then(|| User::from_name(user).unwrap().unwrap());
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        Self { folder, user, program, arguments: Vec::new(), port, process: None }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn start(&mut self) {
        let mut command = self.command(&self.program.clone());
        self.process = Some(command.args(&self.arguments).spawn().unwrap());
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{} ends: {ended:?}", self.program.display());
            assert!(start.elapsed() < Duration::from_secs(120), "it never listens");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn restart(&mut self) {
        self.kill();
        std::thread::sleep(Duration::from_millis(500));
        self.start();
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn postgres() -> Option<Server> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = versions.map(|it| it.unwrap().path().join("bin")).max()?;
    let mut server = Server::new("postgres", newest.join("postgres"));
    let data = server.data();
    let mut command = server.command(&newest.join("initdb"));
    let made = command.args(["-D", &data, "-U", "postgres", "--auth=trust", "--no-sync"]);
    assert!(made.status().unwrap().success());
    let (port, folder) = (server.port.to_string(), server.folder.path().display().to_string());
    server.arguments =
        ["-D", &data, "-p", &port, "-k", &folder, "-h", "127.0.0.1"].map(Into::into).into();
    server.start();
    Some(server)
}

fn mariadb() -> Option<Server> {
    let program = ["/usr/sbin/mariadbd", "/usr/bin/mariadbd"].map(PathBuf::from);
    let program = program.into_iter().find(|path| path.exists())?;
    let mut server = Server::new("mysql", program);
    let data = format!("--datadir={}", server.data());
    let mut command = server.command(Path::new("mariadb-install-db"));
    let made = command.args(["--no-defaults", &data, "--auth-root-authentication-method=normal"]);
    assert!(made.status().unwrap().success());
    let folder = server.folder.path().display().to_string();
    server.arguments = vec![
        "--no-defaults".into(),
        data,
        format!("--port={}", server.port),
        "--bind-address=127.0.0.1".into(),
        format!("--socket={folder}/socket"),
        format!("--pid-file={folder}/pid"),
    ];
    server.start();
    Some(server)
}

/// Answers, and once kills a database in the middle.
struct Killing {
    stub: Arc<Stub>,
    server: Arc<Mutex<Server>>,
    killed: AtomicBool,
}

impl Answerer for Killing {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Value, Failed>> {
        Box::pin(async move {
            if self.stub.asked.load(SeqCst) >= 400 && !self.killed.swap(true, SeqCst) {
                let server = Arc::clone(&self.server);
                tokio::task::spawn_blocking(move || server.lock().unwrap().restart())
                    .await
                    .unwrap();
            }
            self.stub.answer(request).await
        })
    }
}

/// The first cells of what a query says; a server that has just begun is asked again.
async fn ask(dialect: Dialect, url: &str, query: &str) -> Vec<String> {
    let start = Instant::now();
    loop {
        let asked = async {
            let mut connection = Connection::open(dialect, url, false).await?;
            let rows = connection.rows(query).collect::<Vec<_>>().await;
            rows.into_iter().map(|row| row.map_err(Into::into)).collect::<Result<Vec<_>>>()
        };
        match asked.await {
            Ok(rows) => {
                let rows = rows.into_iter().map(|(_, cells)| cells.unwrap());
                let first = rows.map(|cells| cells.values().next().unwrap().to_string());
                return first.collect();
            }
            Err(cause) => {
                assert!(start.elapsed() < Duration::from_secs(60), "{query}: {cause:#}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Goal: from a table to a table and back, each row once, though the database is killed in the
/// middle. Method: rows so long that they can't all be under way when it is, and a sink of the same
/// database.
async fn table_to_table_and_back(
    server: Arc<Mutex<Server>>,
    dialect: Dialect,
    url: &str,
    statements: &[&str],
    same: &str,
) {
    for statement in statements {
        ask(dialect, url, statement).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let query = "SELECT id, n, t, b, d, repeat('x', 10000) AS pad FROM source ORDER BY id";
    let (source, table) = (format!("{url}?query={query}"), format!("{url}?table=answers"));
    let mut trial = Trial::new(dir.path(), &source, &table);
    trial.template = Some("{{ t }}");
    trial.id = Some("id");
    trial.ahead = 64;
    trial.columns = Some(["id", "n", "t", "b", "d"].map(str::to_owned).into());
    let stub = Stub::new(u64::MAX);
    let killing =
        Killing { stub: stub.clone(), server: Arc::clone(&server), killed: AtomicBool::new(false) };
    let counts = trial.run(Arc::new(killing)).await.unwrap();
    assert_eq!((counts.answered, counts.total()), (2000, 2000));
    assert_eq!(stub.asked.load(SeqCst), 2000, "nothing is asked twice");
    let all = "SELECT CAST(count(*) AS char(9)) FROM answers";
    assert!(ask(dialect, url, all).await[0].contains("2000"));
    assert!(ask(dialect, url, same).await[0].contains("2000"), "as it was, with its answer");

    // Again, over rows that are there, and out into a file, and back into another table.
    let csv = dir.path().join("out.csv").display().to_string();
    let out = format!("{url}?query=SELECT * FROM answers ORDER BY id");
    Trial::new(dir.path(), &out, &csv).run(Stub::new(0)).await.unwrap();
    let mut back = Trial::new(dir.path(), &csv, &format!("{url}?table=back"));
    back.id = Some("id");
    back.run(Stub::new(0)).await.unwrap();
    back.run(Stub::new(0)).await.unwrap();
    let again = dir.path().join("again.csv").display().to_string();
    let numbered = match dialect {
        Dialect::Mysql => "CAST(id AS signed)",
        _ => "CAST(id AS integer)",
    };
    let out = format!("{url}?query=SELECT * FROM back ORDER BY {numbered}");
    Trial::new(dir.path(), &out, &again).run(Stub::new(0)).await.unwrap();
    let read = |path| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(&csv), read(&again));
    assert_eq!(read(&csv).lines().count(), 2001);

    // A table where rows wouldn't be found again is refused.
    std::fs::write(&csv, "id,text\n1,a\n").unwrap();
    for (table, index) in [("loose", ""), ("pairs", ", UNIQUE (id, text)")] {
        let create = format!("CREATE TABLE {table} (id integer, text varchar(9){index})");
        ask(dialect, url, &create).await;
        let mut loose = Trial::new(dir.path(), &csv, &format!("{url}?table={table}"));
        loose.id = Some("id");
        let said = format!("{:#}", loose.run(Stub::new(0)).await.unwrap_err());
        assert!(said.contains("unique"), "{said}");
    }
    // Ids that differ in capitals or in a space at the end are different ones.
    std::fs::write(&csv, "id,text\na,1\n\"a \",2\nA,3\n").unwrap();
    // The journal of what was refused is not this one's.
    let of_spaces = tempfile::tempdir().unwrap();
    let mut spaces = Trial::new(of_spaces.path(), &csv, &format!("{url}?table=spaces"));
    spaces.id = Some("id");
    spaces.run(Stub::new(0)).await.unwrap();
    let out = format!("{url}?query=SELECT id, text FROM spaces ORDER BY text");
    Trial::new(of_spaces.path(), &out, &again).run(Stub::new(0)).await.unwrap();
    assert_eq!(read(&again), "id,text\na,1\na ,2\nA,3\n");
    // As is a query that fails halfway, after what it said.
    let lines = dir.path().join("half.jsonl").display().to_string();
    let fails = match dialect {
        Dialect::Mysql => "(SELECT id FROM source WHERE id = IF(i = 5, id, 1))",
        _ => "1 / (5 - i)",
    };
    let query = format!(
        "{url}?query=WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) \
         SELECT i, {fails} AS f FROM n"
    );
    let said = Trial::new(of_spaces.path(), &query, &lines).run(Stub::new(0)).await;
    let said = said.unwrap_err();
    let said = format!("{said:#}");
    assert!(said.contains("the query failed after"), "{said}");
    assert!(!Path::new(&lines).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_gives_and_takes_rows_though_it_is_killed() {
    let Some(server) = postgres() else {
        eprintln!("skipped: PostgreSQL as source and sink (Debian's package postgresql)");
        return;
    };
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
    let statements = [
        "CREATE TABLE source (id integer, n numeric, t text, b boolean, d timestamp)",
        "INSERT INTO source SELECT i, i / 7.0, 'it''s \\ \"' || i || ' é', i % 2 = 0,
            '2026-01-01'::timestamp + make_interval(secs => i) FROM generate_series(1, 2000) AS i",
    ];
    let same = "SELECT count(*)::text FROM source JOIN answers USING (id)
        WHERE upper(source.t) = answer AND source.t = answers.t AND source.n::text = answers.n
        AND source.b = answers.b AND source.d::text = answers.d";
    let server = Arc::new(Mutex::new(server));
    json_stays_json(&url).await;
    table_to_table_and_back(server, Dialect::Postgres, &url, &statements, same).await;
}

/// Goal: a template names what is in a JSON column, and such a column of the target takes it as it
/// was.
async fn json_stays_json(url: &str) {
    let dialect = Dialect::Postgres;
    for statement in [
        "CREATE TABLE documents (id integer PRIMARY KEY, said jsonb)",
        r#"INSERT INTO documents VALUES (1, '{"who": {"name": "Ann"}, "tags": [1, null, "é"]}'),
           (2, '"a text"'), (3, 'null'), (4, NULL)"#,
        "CREATE TABLE copies (id integer PRIMARY KEY, said jsonb, answer text)",
    ] {
        ask(dialect, url, statement).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = format!("{url}?query=SELECT id, said FROM documents ORDER BY id");
    let mut trial = Trial::new(dir.path(), &source, &format!("{url}?table=copies"));
    trial.template = Some("{% if id == 1 %}{{ said.who.name }}{% else %}{{ id }}{% endif %}");
    trial.id = Some("id");
    trial.run(Stub::new(u64::MAX)).await.unwrap();
    let same = "SELECT count(*)::text FROM documents JOIN copies USING (id)
        WHERE copies.said IS NOT DISTINCT FROM NULLIF(documents.said, 'null')";
    assert_eq!(ask(dialect, url, same).await, ["\"4\""]);
    let first = "SELECT answer FROM copies WHERE id = 1";
    assert_eq!(ask(dialect, url, first).await, ["\"ANN\""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_gives_and_takes_rows_though_it_is_killed() {
    let Some(server) = mariadb() else {
        eprintln!("skipped: MariaDB as source and sink (Debian's package mariadb-server)");
        return;
    };
    let url = format!("mysql://root@127.0.0.1:{}/test", server.port);
    let statements = [
        "CREATE TABLE source (id integer, n decimal(30, 10), t text, b boolean, d datetime)
            DEFAULT CHARACTER SET utf8mb4",
        "INSERT INTO source SELECT seq, seq / 7, concat('it''s \\\\ \"', seq, ' é'), seq % 2 = 0,
            '2026-01-01' + INTERVAL seq SECOND FROM seq_1_to_2000",
    ];
    let same = "SELECT count(*) FROM source JOIN answers USING (id)
        WHERE BINARY upper(source.t) = BINARY answer AND BINARY source.t = BINARY answers.t
        AND source.n = answers.n AND source.b = answers.b AND source.d = answers.d";
    let server = Arc::new(Mutex::new(server));
    table_to_table_and_back(server, Dialect::Mysql, &url, &statements, same).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_read_by_ranges_and_are_there_when_they_are_whole() {
    let Some(python) = std::env::var_os("AUTOGLM_MOTO_PYTHON") else {
        eprintln!("skipped: S3 (AUTOGLM_MOTO_PYTHON names no Python that has moto's server)");
        return;
    };
    let mut server = Server::new("nobody", python.into());
    let port = server.port.to_string();
    server.arguments = ["-m", "moto.server", "-H", "127.0.0.1", "-p", &port].map(Into::into).into();
    // Python may be where only its own user can read it.
    server.user = None;
    server.start();
    let endpoint = format!("http://127.0.0.1:{port}");
    let bucket = format!("{endpoint}/data");
    let asked = Asked {
        method: hyper::Method::PUT,
        url: &bucket,
        key: None,
        idempotency_key: None,
        content_type: "",
        body: bytes::Bytes::new(),
    };
    let made = Http::new().unwrap().ask(asked, Duration::from_secs(60)).await.unwrap();
    assert_eq!(made.status, 200);

    let dir = tempfile::tempdir().unwrap();
    let local = |name: &str| dir.path().join(name).display().to_string();
    // More than a part, so that there are several.
    let mut text = String::from("id,text\n");
    for row in 0..180 {
        text += &format!("{row},{}\n", format!("{row} é ").repeat(20_000));
    }
    std::fs::write(local("in.csv"), &text).unwrap();
    let lines = "s3://data/in/a b.jsonl".to_owned();
    for (from, to) in [
        (local("in.csv"), "s3://data/in/rows.csv".into()),
        ("s3://data/in/rows.csv".into(), lines.clone()),
        (lines, "s3://data/rows.parquet".into()),
        ("s3://data/rows.parquet".into(), local("out.csv")),
    ] {
        let mut trial = Trial::new(dir.path(), &from, &to);
        trial.endpoint = Some(endpoint.clone());
        let counts = trial.run(Stub::new(0)).await.unwrap();
        assert_eq!(counts.answered, 180, "{from} to {to}");
    }
    assert!(std::fs::read_to_string(local("out.csv")).unwrap() == text);

    // What isn't finished isn't there.
    let mut trial = Trial::new(dir.path(), "s3://data/in/rows.csv", "s3://data/half.jsonl");
    trial.endpoint = Some(endpoint.clone());
    trial.template = Some("{{ id }}");
    trial.run(Stub::new(100)).await.unwrap_err();
    let half = Trial { input: "s3://data/half.jsonl".into(), output: local("x.csv"), ..trial };
    let folder = tempfile::tempdir().unwrap();
    let half = Trial { folder: folder.path().to_owned(), ..half };
    let said = format!("{:#}", half.run(Stub::new(0)).await.unwrap_err());
    assert!(said.contains("can't read s3://data/half.jsonl"), "{said}");
    let rest = Trial { input: "s3://data/in/rows.csv".into(), ..half };
    let rest = Trial { output: "s3://data/half.jsonl".into(), folder: dir.path().into(), ..rest };
    assert_eq!(rest.run(Stub::new(100)).await.unwrap().answered, 180);
}
