//! The commands: one file each, a clap struct whose doc comments are the help, then one short function.

mod completion;
mod config;
mod content;
mod daemon;
mod doctor;
mod image;
mod job;
mod kernel;
mod ssh_config;
mod version;
mod vm;

use banger_config::Config;
use banger_sys::paths::Paths;
use clap::{CommandFactory, Parser, Subcommand};

use crate::context::Context;
use crate::error::CliError;

/// Disposable virtual machines in one command
///
/// A real kernel, systemd and ssh, your repository inside, and nothing left behind. The usual command is
/// 'banger vm run', which boots a fresh VM and opens a shell in it; the first run builds the default image.
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    subcommand_required = true,
    after_long_help = "Examples:\n  \
        banger vm run                           a fresh VM and a shell in it\n  \
        banger vm run --rm -- uname -a          one command, and nothing is left\n  \
        banger vm run --rm ./repo -- make test  the tracked files of a repository, and a command on them\n  \
        banger ps                               the VMs there are\n  \
        banger doctor                           what this host lacks, and how to mend it\n\n\
        Exit status: a guest command's own, and 125 for a failure of banger's; without a guest command 2 for \
        wrong usage, 1 for a failure, 130 after Ctrl-C."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Noun,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a run")]
enum Noun {
    #[command(subcommand)]
    Vm(vm::Verb),
    /// List VMs; the same as 'vm list'
    Ps(vm::List),
    #[command(subcommand)]
    Image(image::Verb),
    #[command(subcommand)]
    Kernel(kernel::Verb),
    #[command(subcommand)]
    Job(job::Verb),
    SshConfig(ssh_config::SshConfig),
    #[command(subcommand)]
    Daemon(daemon::Verb),
    #[command(subcommand)]
    Config(config::Verb),
    Doctor(doctor::Doctor),
    Version(version::Version),
    Completion(completion::Completion),
}

/// The whole command line, with the defaults of this host and this user in the help. A configuration that is not
/// usable changes nothing here: it is an error of the command that needs it.
pub(crate) fn command() -> clap::Command {
    match Paths::for_user().ok().and_then(|paths| Config::load(&paths.config).ok()) {
        Some(config) => vm::with_defaults(Cli::command(), &config),
        None => Cli::command(),
    }
}

impl Cli {
    /// Whether the caller expects the exit status of a guest command.
    pub(crate) fn has_guest_command(&self) -> bool {
        match &self.command {
            Noun::Vm(verb) => verb.has_guest_command(),
            Noun::Ps(_)
            | Noun::Image(_)
            | Noun::Kernel(_)
            | Noun::SshConfig(_)
            | Noun::Job(_)
            | Noun::Daemon(_)
            | Noun::Config(_)
            | Noun::Doctor(_)
            | Noun::Version(_)
            | Noun::Completion(_) => false,
        }
    }

    /// Does it. The result is the exit status.
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self.command {
            Noun::Vm(verb) => verb.run(context).await,
            Noun::Ps(list) => list.run(context).await,
            Noun::Image(verb) => verb.run(context).await,
            Noun::Kernel(verb) => verb.run(context).await,
            Noun::SshConfig(config) => config.run(context),
            Noun::Job(verb) => verb.run(context).await,
            Noun::Daemon(verb) => verb.run(context).await,
            Noun::Config(verb) => verb.run(context),
            Noun::Doctor(doctor) => doctor.run(context).await,
            Noun::Version(version) => version.run(context).await,
            Noun::Completion(completion) => completion.run(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_config::Host;
    use banger_proto::ByteSize;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// The whole tree, short and long, on a host of 8 CPUs and 16 GiB.
    #[test]
    fn help() {
        let host = Host { cpus: 8, memory: ByteSize::mib(16 * 1024) };
        let config = Config::parse("/c.toml".as_ref(), "", host).unwrap();
        let mut command = vm::with_defaults(Cli::command(), &config).term_width(100);
        command.build();
        let mut text = String::new();
        add(&mut command, &mut text);
        insta::assert_snapshot!(text);
    }

    /// A command comes with an example of itself. That they run, a test with real VMs shows.
    #[test]
    fn every_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        let mut without = Vec::new();
        examples(&mut command, &mut without);
        assert!(without.is_empty(), "no example in the help of: {}", without.join(", "));
    }

    /// However ssh calls it, wherever a VM is named.
    #[test]
    fn every_command_knows_a_vm_by_its_host_name() {
        let mut command = Cli::command();
        command.build();
        let mut seen = 0;
        for verb in command.find_subcommand("vm").unwrap().get_subcommands() {
            let names_vms =
                |arg: &clap::Arg| arg.get_value_names().is_some_and(|names| names[0].as_str() == "VM");
            if !verb.get_arguments().any(names_vms) {
                continue;
            }
            let mut words = vec!["banger", "vm", verb.get_name(), "box.vm"];
            words.extend(if verb.get_name() == "exec" { &["--", "true"][..] } else { &[] });
            let parsed = format!("{:?}", Cli::try_parse_from(&words).unwrap());
            assert!(parsed.contains("\"box\"") && !parsed.contains("box.vm"), "{words:?}: {parsed}");
            seen += 1;
        }
        assert!(seen > 15, "{seen} commands name VMs");
    }

    fn examples(command: &mut clap::Command, without: &mut Vec<String>) {
        let name = command.get_bin_name().unwrap_or("banger").to_owned();
        let help = command.render_long_help().to_string();
        let shown = help.split_once("Examples:\n").map_or("", |(_, examples)| examples);
        let group = name.rsplit_once(' ').map_or("", |(group, _)| group);
        let names = command.get_all_aliases().map(|alias| format!("{group} {alias}")).chain([name.clone()]);
        if !names.into_iter().any(|name| shown.contains(&name)) {
            without.push(name);
        }
        for inner in command.get_subcommands_mut() {
            examples(inner, without);
        }
    }

    fn add(command: &mut clap::Command, text: &mut String) {
        let name = command.get_bin_name().unwrap_or("banger").to_owned();
        text.push_str(&format!("=== {name} -h\n{}\n", command.render_help()));
        text.push_str(&format!("=== {name} --help\n{}\n", command.render_long_help()));
        for inner in command.get_subcommands_mut() {
            add(inner, text);
        }
    }
}
