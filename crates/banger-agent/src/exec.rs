//! From a request to a process: environment, program, directory and standard descriptors, without a shell.
//!
//! The environment is, later ones winning: the defaults below, the VM's, the request's. A name without a slash
//! is searched in the PATH that comes out, as execvp(3) would. Names of users come from `/etc/passwd` alone.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use banger_proto::guest::{ExecRequest, GuestFailure, GuestFailureCode, WindowSize};
use banger_sys::spawn::{Program, Session, Spawn, SpawnError, Spawned};

use crate::error::StepError;
use crate::root::Root;

/// PATH where neither the VM nor the request sets one; Debian's for root.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// TERM for a terminal whose request names none.
const DEFAULT_TERM: &str = "xterm";
/// The largest `/etc/passwd` that is searched, in bytes.
const MAX_PASSWD: u64 = 1024 * 1024;

/// A command that runs, and the agent's ends of its standard descriptors.
#[derive(Debug)]
pub(crate) struct Running {
    /// The process: leader of its own session and process group.
    pub(crate) process: Spawned,
    /// Its descriptors.
    pub(crate) io: CommandIo,
}

/// The agent's ends of a command's standard descriptors; none of them blocks.
#[derive(Debug)]
pub(crate) enum CommandIo {
    /// Pipes; no stdin where the command reads from `/dev/null`.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// The master of its terminal.
    Terminal(OwnedFd),
}

/// Root's entry of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    home: String,
    shell: String,
}

/// What is executed, before descriptors are made.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Where the program may be.
    paths: Vec<String>,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: String,
}

/// Starts a command in the process's own root.
///
/// # Errors
/// A [`GuestFailure`] whose code tells a shell's 126 and 127 apart from a bad request and from the system's failures.
pub(crate) fn start(
    request: &ExecRequest,
    vm_env: &BTreeMap<String, String>,
) -> Result<Running, GuestFailure> {
    let root = Root::open("/").map_err(|error| system(&error))?;
    let plan = Plan::new(request, vm_env, &User::of(&root), |path| root.exists(path))?;
    let (child, io, session) = match &request.tty {
        Some(tty) => terminal(tty.size)?,
        None => pipes(request.stdin)?,
    };
    let paths = c_strings(&plan.paths)?;
    let argv = c_strings(&plan.argv)?;
    let env: Vec<String> = plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let env = c_strings(&env)?;
    let cwd = c_strings(std::slice::from_ref(&plan.cwd))?;
    let spawn = Spawn {
        program: Program::Paths(&paths),
        argv: &argv,
        env: &env,
        cwd: cwd.first().map(CString::as_c_str),
        stdio: [child[0].as_fd(), child[1].as_fd(), child[2].as_fd()],
        session,
        // The agent is exempt from the kernel's out-of-memory killer; what it runs is not.
        write_first: Some((c"/proc/self/oom_score_adj", c"0")),
    };
    match spawn.start() {
        Ok(process) => Ok(Running { process, io }),
        Err(error) => Err(plan.explain(&error, |path| root.exists(path))),
    }
}

/// Root's home, where what has no absolute path is.
pub(crate) fn home() -> Result<String, GuestFailure> {
    Root::open("/").map(|root| User::of(&root).home).map_err(|error| system(&error))
}

impl User {
    /// Root, as this root's `/etc/passwd` has it.
    fn of(root: &Root) -> Self {
        let passwd = root.read("/etc/passwd", MAX_PASSWD).ok().flatten().unwrap_or_default();
        Self::root(&String::from_utf8_lossy(&passwd))
    }

    fn root(passwd: &str) -> Self {
        let default =
            || Self { name: "root".to_owned(), home: "/root".to_owned(), shell: "/bin/sh".to_owned() };
        let entry = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, "0", _, _, home, shell] = fields[..] else { return None };
            let or = |text: &str, other: &str| if text.starts_with('/') { text } else { other }.to_owned();
            Some(Self { name: name.to_owned(), home: or(home, "/"), shell: or(shell, "/bin/sh") })
        };
        passwd.lines().find_map(entry).unwrap_or_else(default)
    }
}

impl Plan {
    fn new(
        request: &ExecRequest,
        vm_env: &BTreeMap<String, String>,
        user: &User,
        exists: impl Fn(&str) -> bool,
    ) -> Result<Self, GuestFailure> {
        let mut env = BTreeMap::from(
            [
                ("HOME", user.home.as_str()),
                ("LOGNAME", &user.name),
                ("PATH", DEFAULT_PATH),
                ("SHELL", &user.shell),
                ("USER", &user.name),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        if let Some(tty) = &request.tty {
            let term = if tty.term.is_empty() { DEFAULT_TERM } else { &tty.term };
            env.insert("TERM".to_owned(), term.to_owned());
        }
        for (name, value) in vm_env.iter().chain(&request.env) {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(failure(
                    GuestFailureCode::BadRequest,
                    format!("'{}' cannot be in an environment", name.escape_debug()),
                ));
            }
            env.insert(name.clone(), value.clone());
        }
        let cwd = match &request.cwd {
            Some(cwd) => cwd.clone(),
            None if exists(&user.home) => user.home.clone(),
            None => "/".to_owned(),
        };
        let Some(program) = request.argv.first() else {
            let shell = if exists(&user.shell) { &user.shell } else { "/bin/sh" };
            let name = shell.rsplit('/').next().unwrap_or(shell);
            return Ok(Self { paths: vec![shell.to_owned()], argv: vec![format!("-{name}")], env, cwd });
        };
        let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let paths = match program.as_str() {
            "" => Vec::new(),
            name if name.contains('/') => vec![name.to_owned()],
            // An empty element means the working directory, as ever.
            name => path
                .split(':')
                .map(|d| if d.is_empty() { name.into() } else { format!("{d}/{name}") })
                .collect(),
        };
        Ok(Self { paths, argv: request.argv.clone(), env, cwd })
    }

    fn explain(&self, error: &SpawnError, exists: impl Fn(&str) -> bool) -> GuestFailure {
        let program = self.argv.first().map_or("", String::as_str);
        match error {
            SpawnError::Directory(cause) => failure(
                GuestFailureCode::BadDirectory,
                format!("cannot enter the working directory {}: {cause}", self.cwd),
            ),
            SpawnError::Exec(cause) if cause.kind() == io::ErrorKind::NotFound => {
                // A file that is there and yet not found lacks its interpreter or its loader.
                match self.paths.iter().find(|path| path.starts_with('/') && exists(path)) {
                    Some(path) => failure(
                        GuestFailureCode::CommandNotExecutable,
                        format!("cannot execute {path}: its interpreter is not in the guest"),
                    ),
                    None => failure(
                        GuestFailureCode::CommandNotFound,
                        format!("'{program}' is not in the guest (PATH={})", self.env["PATH"]),
                    ),
                }
            }
            SpawnError::Exec(cause) => failure(
                GuestFailureCode::CommandNotExecutable,
                format!("cannot execute '{program}': {cause}"),
            ),
            SpawnError::Clone(cause) | SpawnError::Session(cause) | SpawnError::Stdio(cause) => {
                failure(GuestFailureCode::System, format!("cannot start '{program}': {error}: {cause}"))
            }
        }
    }
}

type Ends = ([OwnedFd; 3], CommandIo, Session);

fn pipes(stdin: bool) -> Result<Ends, GuestFailure> {
    let doing = |cause: io::Error| system(&StepError::new("making pipes for the command", cause));
    let pair = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|cause| doing(cause.into()));
    let ours = |fd: OwnedFd| {
        // O_NONBLOCK is the open file's: the two ends of a pipe are two of them.
        rustix::io::ioctl_fionbio(&fd, true).map_err(|cause| doing(cause.into()))?;
        Ok::<_, GuestFailure>(fd)
    };
    let (child_in, stdin) = if stdin {
        let (reader, writer) = pair()?;
        (reader, Some(ours(writer)?))
    } else {
        (File::open("/dev/null").map_err(doing)?.into(), None)
    };
    let (stdout, child_out) = pair()?;
    let (stderr, child_err) = pair()?;
    let io = CommandIo::Pipes { stdin, stdout: ours(stdout)?, stderr: ours(stderr)? };
    Ok(([child_in, child_out, child_err], io, Session::New))
}

fn terminal(size: WindowSize) -> Result<Ends, GuestFailure> {
    let make = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
        rustix::pty::unlockpt(&master)?;
        let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer)?;
        resize(&master, size)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let child = [slave.try_clone()?, slave.try_clone()?, slave];
        Ok((child, CommandIo::Terminal(master), Session::WithTerminal))
    };
    make().map_err(|cause: io::Error| system(&StepError::new("making a terminal for the command", cause)))
}

/// Gives the terminal a new size; its foreground processes are told (SIGWINCH).
pub(crate) fn resize(master: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

fn c_strings(list: &[String]) -> Result<Vec<CString>, GuestFailure> {
    let converted = list.iter().map(|text| CString::new(text.as_str())).collect::<Result<_, _>>();
    converted
        .map_err(|_| failure(GuestFailureCode::BadRequest, "a command cannot hold a zero byte".to_owned()))
}

/// A failure of this kind.
pub(crate) fn failure(code: GuestFailureCode, message: String) -> GuestFailure {
    GuestFailure { code, message }
}

/// A failure of the system.
pub(crate) fn system(error: &StepError) -> GuestFailure {
    failure(GuestFailureCode::System, error.chain())
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::guest::TtyRequest;

    fn request(argv: &[&str]) -> ExecRequest {
        ExecRequest {
            argv: argv.iter().map(|&s| s.to_owned()).collect(),
            env: BTreeMap::new(),
            cwd: None,
            tty: None,
            stdin: false,
        }
    }

    fn user() -> User {
        User::root("daemon:x:1:1::/:/bin/false\nroot:x:0:0:root:/root:/bin/bash\n")
    }

    #[test]
    fn an_empty_command_is_the_login_shell() {
        let plan = Plan::new(&request(&[]), &BTreeMap::new(), &user(), |_| true).unwrap();
        assert_eq!((plan.paths, plan.argv), (vec!["/bin/bash".to_owned()], vec!["-bash".to_owned()]));
        let plan = Plan::new(&request(&[]), &BTreeMap::new(), &user(), |_| false).unwrap();
        assert_eq!((plan.paths, plan.cwd), (vec!["/bin/sh".to_owned()], "/".to_owned()));
    }

    #[test]
    fn the_request_wins_over_the_vm_and_the_vm_over_the_defaults() {
        let mut request = request(&["tool"]);
        request.env.insert("A".into(), "request".into());
        request.tty = Some(TtyRequest { term: "linux".into(), size: WindowSize { rows: 1, cols: 1 } });
        let vm = BTreeMap::from([("A", "vm"), ("PATH", "/opt:")].map(|(n, v)| (n.into(), v.into())));
        let plan = Plan::new(&request, &vm, &user(), |_| true).unwrap();
        assert_eq!(plan.env["A"], "request");
        assert_eq!(plan.env["TERM"], "linux");
        assert_eq!(plan.env["HOME"], "/root");
        assert_eq!(plan.paths, ["/opt/tool", "tool"]);
        assert_eq!(plan.cwd, "/root");
    }

    #[test]
    fn what_no_environment_can_hold_is_refused() {
        for name in ["", "A=B", "A\0"] {
            let mut request = request(&["x"]);
            request.env.insert(name.into(), String::new());
            let refused = Plan::new(&request, &BTreeMap::new(), &user(), |_| true).unwrap_err();
            assert_eq!(refused.code, GuestFailureCode::BadRequest);
        }
        assert_eq!(
            start(&request(&["a\0"]), &BTreeMap::new()).unwrap_err().code,
            GuestFailureCode::BadRequest
        );
    }

    #[test]
    fn failures_are_told_apart() {
        let code = |argv: &[&str], cwd: Option<&str>| {
            let mut request = request(argv);
            request.cwd = cwd.map(Into::into);
            start(&request, &BTreeMap::new()).unwrap_err().code
        };
        assert_eq!(code(&["no-such-tool"], None), GuestFailureCode::CommandNotFound);
        assert_eq!(code(&[""], None), GuestFailureCode::CommandNotFound);
        assert_eq!(code(&["/etc/passwd"], None), GuestFailureCode::CommandNotExecutable);
        assert_eq!(code(&["/etc"], None), GuestFailureCode::CommandNotExecutable);
        assert_eq!(code(&["true"], Some("/nowhere")), GuestFailureCode::BadDirectory);
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/nowhere/sh\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(code(&[script.to_str().unwrap()], None), GuestFailureCode::CommandNotExecutable);
    }

    #[test]
    fn a_passwd_that_is_odd_gives_usual_values() {
        let default = User { name: "root".into(), home: "/root".into(), shell: "/bin/sh".into() };
        assert_eq!(User::root(""), default);
        assert_eq!(User::root("root:x:0:0:root\n"), default);
        assert_eq!(
            User::root("toor:x:0:0:::\n"),
            User { name: "toor".into(), home: "/".into(), shell: "/bin/sh".into() }
        );
    }
}
