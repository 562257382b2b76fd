//! A process of another user at the daemon's socket: it is sent away before it has said anything.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use banger_daemon::rpc::{self, Api};
use banger_daemon::service::Services;
use testkit::fake::FakeWorld;
use tokio::sync::watch;

use super::{ROLE, again, command, role};

const NAME: &str = "other_user::a_connection_of_another_user_is_refused_before_a_byte_is_read";
const SOCKET: &str = "BANGER_TEST_SOCKET";
/// Nobody's who runs tests.
const STRANGER: u32 = 65_534;
const CALL: &[u8] = b"{\"method\":\"org.varlink.service.GetInfo\"}\0";

#[test]
fn a_connection_of_another_user_is_refused_before_a_byte_is_read() {
    if let Some(role) = role() {
        let socket = std::env::var(SOCKET).unwrap();
        return if role == "stranger" { stranger(Path::new(&socket)) } else { owner(Path::new(&socket)) };
    }
    if !rustix::process::geteuid().is_root() {
        return testkit::not_run(NAME, "becoming another user needs root");
    }
    // Open to all, as the daemon's own directory and socket never are: what is left is the look at who it is.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let socket = dir.path().join("bangerd.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (stop, stopped) = watch::channel(false);
    let world = FakeWorld::new().unwrap();
    let services = runtime.block_on(Services::open(world.paths(), world.ports())).unwrap();
    let listener = runtime.block_on(async { rpc::bind(&socket) }).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let server = runtime.spawn(rpc::serve(listener, Arc::new(Api::new(services, stop.clone())), stopped));
    let expect_passed = |ran: Output| {
        let (said, why) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success() && said.contains("1 passed"), "{said}{why}");
    };
    // By this name a program is found whatever directories it is in, and whoever looks.
    let me = [&["/proc/self/exe".to_owned()], &again(NAME)[1..]].concat();
    let connect = |role: &str, uid: u32| {
        let mut connect = command(&me);
        connect.env(ROLE, role).env(SOCKET, &socket).current_dir("/").stdin(Stdio::null());
        connect.uid(uid).gid(uid).output()
    };
    expect_passed(connect("owner", 0).unwrap());
    match connect("stranger", STRANGER) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return testkit::not_run(NAME, "no second user id here");
        }
        ran => expect_passed(ran.unwrap()),
    }
    expect_passed(connect("owner", 0).unwrap());
    stop.send_replace(true);
    runtime.block_on(server).unwrap().unwrap();
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    // A daemon that waits for a byte is found by this.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn owner(socket: &Path) {
    let mut stream = connect(socket);
    stream.write_all(CALL).unwrap();
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[..read]).contains("dev.banger.Daemon"));
}

fn stranger(socket: &Path) {
    assert_eq!(rustix::process::geteuid().as_raw(), STRANGER);
    let mut silent = connect(socket);
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "it was not sent away before it said a word");
    let mut talks = connect(socket);
    // Whether it comes in time for the kernel to take it is no matter.
    let _ = talks.write_all(CALL);
    let mut answer = Vec::new();
    match talks.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
}
