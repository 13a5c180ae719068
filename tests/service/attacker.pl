# attacker.pl NAMESPACES ACT...: what somebody with the service's uid can do who has none of its sandbox.
#
# As root, whose rights it gives up before the first act. NAMESPACES: the process whose mounts, network and users it shares, or
# "-" for those of the machine. It prints a line for each act: the act, and "ok" or why not. Besides the pid of a process an act
# may name "bystander": one beside it that guards nothing.
use strict;
use warnings;
no warnings qw(portable exec);
use POSIX ();
use Socket;

my %calls = `uname -m` =~ /aarch64/
    ? (setns => 268, ptrace => 117, process_vm_readv => 270, prctl => 167)
    : (setns => 308, ptrace => 101, process_vm_readv => 310, prctl => 157);
my ($namespaces, @acts) = @ARGV;
my ($uid, $gid) = (getpwnam("hsm-authd"))[2, 3];

if ($namespaces ne "-") {
    my @handles = map { open(my $file, "<", "/proc/$namespaces/ns/$_") or die "$_: $!"; $file } qw(net mnt user);
    for my $handle (@handles) {
        syscall($calls{setns}, fileno($handle), 0) == 0 or die "setns: $!";
    }
}
$) = "$gid $gid";
POSIX::setgid($gid) && POSIX::setuid($uid) or die "rights: $!";

pipe(my $told, my $tells) or die "pipe: $!";
my $bystander = fork() // die "fork: $!";
if (!$bystander) {
    # Who has changed its uid is guarded until it runs another program, or says otherwise: PR_SET_DUMPABLE.
    syscall($calls{prctl}, 4, 1, 0, 0, 0);
    syswrite($tells, "1");
    sleep;
}
sysread($told, my $one, 1);

# Reads a byte.
sub reads {
    my ($path, $address) = @_;
    open(my $file, "<:raw", $path) or return 0;
    sysseek($file, $address, 0) if $address;
    return sysread($file, my $byte, 1);
}

# Where something of the process is: the first line of its map, or, where that must not be looked at, anywhere.
sub mapped {
    open(my $maps, "<", "/proc/$_[0]/maps") or return 4096;
    return (<$maps> // "") =~ /^([0-9a-f]+)-/ ? hex($1) : 4096;
}

my %how = (
    read => sub { reads($_[0]) },
    mem => sub { reads("/proc/$_[0]/mem", mapped($_[0])) },
    environ => sub { reads("/proc/$_[0]/environ") },
    maps => sub { reads("/proc/$_[0]/maps") },
    # PTRACE_SEIZE, and it ends with this process.
    ptrace => sub { syscall($calls{ptrace}, 0x4206, $_[0] + 0, 0, 0) == 0 },
    process_vm_readv => sub {
        my $byte = "\0";
        my $local = pack("P Q", $byte, 1);
        my $remote = pack("Q Q", mapped($_[0]), 1);
        syscall($calls{process_vm_readv}, $_[0] + 0, $local, 1, $remote, 1, 0) == 1;
    },
    # Anywhere beyond this machine. Without a connection: only the way there is asked for.
    udp => sub {
        my ($host, $port) = split(/:/, $_[0]);
        socket(my $socket, PF_INET, SOCK_DGRAM, 0) or return 0;
        return connect($socket, pack_sockaddr_in($port, inet_aton($host)));
    },
    exec => sub { system { $_[0] } $_[0]; $? == 0 },
);
for my $act (@acts) {
    my ($what, $of) = split(/:/, $act, 2);
    $of = $bystander if $of eq "bystander";
    $! = 0;
    my $came = $how{$what}->($of) ? "ok" : ($! || "nothing");
    print "$act\t$came\n";
}
kill(KILL => $bystander);
