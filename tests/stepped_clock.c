/*
 * Steps the wall clock of one process: preloaded, it adds to the time of day what a file says, in seconds. The monotonic
 * clock stays as it is, as it does when somebody sets a machine's clock.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void)
{
    static atomic_int file = -1;
    static atomic_long last;
    char text[32];
    int fd = atomic_load(&file);

    if (fd < 0) {
        const char *path = getenv("STEPPED_CLOCK");
        fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd < 0)
            abort(); /* A test that steps nothing must not pass. */
        atomic_store(&file, fd);
    }
    ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
    if (length > 0) {
        text[length] = '\0';
        atomic_store(&last, strtol(text, NULL, 10));
    }
    return atomic_load(&last);
}

/* Past the libc whose symbol this replaces. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    long result = syscall(SYS_clock_gettime, clock, now);

    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return (int)result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec time;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
