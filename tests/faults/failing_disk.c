/* A disk that fails when told to: preloaded into a test's child process, it stands before the C
 * library's write and sync calls, and lets them fail on a SQLite WAL and on nothing else.
 *
 * The file named by FAILING_DISK_CONTROL is read at each such call; what is in it, up to a zero, says how:
 *   none            nothing fails
 *   write-eio       a write does nothing and reports EIO
 *   write-enospc    a write does nothing and reports ENOSPC
 *   write-then-eio  a write is done, and reports EIO
 *   fsync-eio       a sync does nothing and reports EIO: the data is written, but not durable
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_wal(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    return length > 4 && memcmp(path + length - 4, "-wal", 4) == 0;
}

/* Opened before the process takes that from itself. */
static int control = -1;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING_DISK_CONTROL");
    if (path != NULL) control = open(path, O_RDONLY | O_CLOEXEC);
}

/* Whether the disk is told to fail in this way, on this file. */
static int told(int fd, const char *mode) {
    int before = errno;
    char word[32] = "";
    if (control >= 0 && is_wal(fd)) {
        ssize_t length = pread(control, word, sizeof word - 1, 0);
        word[length > 0 ? length : 0] = '\0';
    }
    errno = before;
    return strcmp(word, mode) == 0;
}

static ssize_t fails(int error) {
    errno = error;
    return -1;
}

#define WRITE(fd, call)                                    \
    do {                                                   \
        if (told(fd, "write-eio")) return fails(EIO);      \
        if (told(fd, "write-enospc")) return fails(ENOSPC); \
        ssize_t done = (call);                             \
        return told(fd, "write-then-eio") ? fails(EIO) : done; \
    } while (0)

ssize_t write(int fd, const void *data, size_t length) {
    WRITE(fd, REAL(write)(fd, data, length));
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) {
    WRITE(fd, REAL(pwrite)(fd, data, length, at));
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    WRITE(fd, REAL(pwrite64)(fd, data, length, at));
}

int fsync(int fd) {
    return told(fd, "fsync-eio") ? (int)fails(EIO) : REAL(fsync)(fd);
}

int fdatasync(int fd) {
    return told(fd, "fsync-eio") ? (int)fails(EIO) : REAL(fdatasync)(fd);
}
