use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// One of each, as they are written.
fn all() -> Vec<Request> {
    let file = |name: &str| PathBuf::from(format!("/vm/{name}"));
    vec![
        Request::Logger(Logger { log_path: file("log"), level: LogLevel::Info }),
        Request::Metrics(Metrics { metrics_path: file("metrics") }),
        Request::MachineConfig(MachineConfig { vcpu_count: 2, mem_size_mib: 256 }),
        Request::BootSource(BootSource {
            kernel_image_path: file("vmlinux"),
            initrd_path: file("initrd"),
            boot_args: "quiet".into(),
        }),
        Request::Drive(Drive {
            drive_id: "root".into(),
            path_on_host: file("root.raw"),
            is_root_device: false,
            is_read_only: false,
            cache_type: CacheType::Writeback,
        }),
        Request::NetworkInterface(NetworkInterface {
            iface_id: "net".into(),
            guest_mac: "02:00:00:00:00:01".into(),
            host_dev_name: "banger-test".into(),
        }),
        Request::Vsock(Vsock { guest_cid: 3, uds_path: file("channel.sock") }),
        Request::Balloon(Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 0 }),
        Request::Entropy(Entropy {}),
        Request::Action(Action::InstanceStart),
        Request::BalloonSize(BalloonSize { amount_mib: 16 }),
        Request::Action(Action::FlushMetrics),
        Request::VmState(VmState::Paused),
        Request::SnapshotCreate(SnapshotCreate {
            snapshot_path: file("machine"),
            mem_file_path: file("memory"),
            snapshot_type: SnapshotType::Full,
        }),
        Request::VmState(VmState::Resumed),
        Request::SnapshotLoad(SnapshotLoad {
            snapshot_path: file("machine"),
            mem_backend: MemoryBackend::File(file("memory")),
            resume_vm: true,
        }),
        Request::Action(Action::SendCtrlAltDel),
    ]
}

#[test]
fn requests_are_written_as_firecracker_reads_them() {
    let mut text = String::new();
    for request in all() {
        let (method, path) = request.endpoint();
        writeln!(text, "{method} {path} {}", serde_json::to_string(&request).unwrap()).unwrap();
    }
    insta::assert_snapshot!(text);
}

/// An API that answers one connection with these bytes, then stays silent with the connection open.
fn scripted(reply: impl Into<Vec<u8>>) -> (Api, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let reply = reply.into();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await.unwrap();
        // A reply that is too long is not read to its end.
        let _ = stream.write_all(&reply).await;
        std::future::pending::<()>().await;
    });
    (Api::at(&path), dir)
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn what_firecracker_says_is_understood() {
    let (api, _dir) = scripted(http("200 OK", r#"{"firecracker_version":"1.16.1"}"#));
    assert_eq!(api.version().await.unwrap(), "1.16.1");
    let instance = r#"{"id":"a","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#;
    let (api, _dir) = scripted(http("200 OK", instance));
    assert_eq!(api.instance().await.unwrap().state, InstanceState::NotStarted);
    let (api, _dir) = scripted("HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n");
    api.send(&Request::VmState(VmState::Paused)).await.unwrap();
    let fault = http("400 Bad Request", r#"{"fault_message":"no\u001b[31m disk"}"#);
    let (api, _dir) = scripted(fault);
    let error = api.send(&Request::VmState(VmState::Paused)).await.unwrap_err().to_string();
    assert!(error.starts_with("Firecracker refused 'PATCH /vm': no"), "{error}");
    assert!(!error.contains('\u{1b}'), "{error:?}");
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_bounded() {
    let endless = format!("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}", "x".repeat(MAX_REPLY * 2));
    let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_REPLY * 2));
    for reply in [endless, head, "SSH-2.0\r\n\r\n".to_owned(), http("200 OK", "[]"), http("200 OK", "")] {
        let start = reply.chars().take(40).collect::<String>();
        let (api, _dir) = scripted(reply);
        let error = api.version().await.unwrap_err();
        assert!(matches!(error, ApiError::Reply { .. } | ApiError::Http { .. }), "{start}: {error:?}");
    }
    let (api, _dir) = scripted(http("500 Internal Server Error", "<html>"));
    let error = api.version().await.unwrap_err().to_string();
    assert!(error.contains("500 Internal Server Error without an explanation"), "{error}");
    let nobody = Api::at(Path::new("/no/such.sock"));
    assert!(matches!(nobody.version().await, Err(ApiError::Connect { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_silent_firecracker_is_not_waited_for_for_ever() {
    let (api, _dir) = scripted("");
    let error = api.version().await.unwrap_err().to_string();
    assert_eq!(error, "Firecracker did not answer 'GET /version' within 30 s");
}

/// The client against the real one, up to the start of a guest.
#[tokio::test]
async fn a_real_firecracker_takes_every_request() {
    let Some(binary) = std::env::var_os("BANGER_FIRECRACKER") else {
        testkit::not_run("a_real_firecracker_takes_every_request", "BANGER_FIRECRACKER names no Firecracker");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let file = |name: &str| dir.path().join(name);
    let socket = file("api.sock");
    let mut firecracker = tokio::process::Command::new(binary)
        .args(["--id", "under-test", "--api-sock"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let api = Api::at(&socket);
    while !socket.exists() {
        assert!(firecracker.try_wait().unwrap().is_none(), "it ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let instance = api.instance().await.unwrap();
    assert_eq!((instance.id.as_str(), instance.state), ("under-test", InstanceState::NotStarted));
    assert_eq!(instance.vmm_version, api.version().await.unwrap());
    for name in ["vmlinux", "initrd", "root.raw", "log", "metrics"] {
        std::fs::write(file(name), [0; 4096]).unwrap();
    }
    for request in all() {
        // The same request, with files that are there.
        let here =
            serde_json::to_string(&request).unwrap().replace("/vm/", &format!("{}/", dir.path().display()));
        let (method, path) = request.endpoint();
        let answer = api.exchange(method, path, here.into(), TIMEOUT).await;
        match request {
            Request::Logger(_)
            | Request::Metrics(_)
            | Request::MachineConfig(_)
            | Request::BootSource(_)
            | Request::Drive(_)
            | Request::Vsock(_)
            | Request::Balloon(_)
            | Request::Entropy(_) => assert!(answer.is_ok(), "{request:?}: {answer:?}"),
            // Whoever may make a tap has one now, until Firecracker ends.
            Request::NetworkInterface(_) => {
                assert!(matches!(answer, Ok(_) | Err(ApiError::Refused { .. })), "{answer:?}");
            }
            // The kernel is none, so no machine runs: understood, and refused for that.
            Request::Action(_)
            | Request::BalloonSize(_)
            | Request::VmState(_)
            | Request::SnapshotCreate(_)
            | Request::SnapshotLoad(_) => {
                let Err(ApiError::Refused { fault, .. }) = answer else { panic!("{request:?}: {answer:?}") };
                assert!(!fault.contains("deserializ") && !fault.contains("unknown field"), "{fault}");
            }
        }
    }
    firecracker.kill().await.unwrap();
}
