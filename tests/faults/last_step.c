/* A process that ends between two steps: preloaded into a test's child process, it stands before the C library's calls
 * that make, move and remove names or change who may use them, and kills the process before one of them.
 *
 * Only calls that name a path containing LAST_STEP_OF count. LAST_STEP is the number of the one that is not done any
 * more, from 1; without it none is. LAST_STEP_UMASK is the mask for the modes of new files, octal: 0 shows what a process
 * owes to its own care alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *mask = getenv("LAST_STEP_UMASK");
    if (mask != NULL) umask((mode_t)strtoul(mask, NULL, 8));
}

static void step(const char *one, const char *other) {
    static long steps = 0;
    const char *of = getenv("LAST_STEP_OF"), *last = getenv("LAST_STEP");
    if (of == NULL || last == NULL) return;
    if (strstr(one, of) == NULL && (other == NULL || strstr(other, of) == NULL)) return;
    if (__atomic_add_fetch(&steps, 1, __ATOMIC_SEQ_CST) == strtol(last, NULL, 10)) {
        /* Itself alone: a sandbox lets it signal nobody else. */
        raise(SIGKILL);
        for (;;) pause();
    }
}

int link(const char *from, const char *to) {
    step(from, to);
    return REAL(link)(from, to);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    step(from, to);
    return REAL(linkat)(from_dir, from, to_dir, to, flags);
}

int rename(const char *from, const char *to) {
    step(from, to);
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    step(path, NULL);
    return REAL(unlink)(path);
}

int unlinkat(int dir, const char *path, int flags) {
    step(path, NULL);
    return REAL(unlinkat)(dir, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    step(path, NULL);
    return REAL(mkdir)(path, mode);
}

int chmod(const char *path, mode_t mode) {
    step(path, NULL);
    return REAL(chmod)(path, mode);
}


int bind(int socket, const struct sockaddr *address, socklen_t length) {
    if (address->sa_family == AF_UNIX && length > sizeof(sa_family_t)) {
        char path[sizeof(struct sockaddr_un) + 1] = "";
        memcpy(path, ((const struct sockaddr_un *)address)->sun_path, length - sizeof(sa_family_t));
        step(path, NULL);
    }
    return REAL(bind)(socket, address, length);
}
