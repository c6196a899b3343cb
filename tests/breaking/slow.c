/* A disk that stalls: `write` to a file below $SLOW_UNDER takes as many seconds as $SLOW_SWITCH, a file, says. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static ssize_t (*really_write)(int, const void *, size_t);

static double seconds(void)
{
    char text[32] = "";
    int file = open(getenv("SLOW_SWITCH"), O_RDONLY);
    if (file < 0)
        return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    return size > 0 ? atof(text) : 0;
}

ssize_t write(int file, const void *data, size_t size)
{
    char link[64], path[4096] = "";
    if (!really_write)
        really_write = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    const char *under = getenv("SLOW_UNDER");
    if (under && readlink(link, path, sizeof path - 1) > 0 && !strncmp(path, under, strlen(under))) {
        double wait = seconds();
        struct timespec pause = {(time_t)wait, (long)((wait - (time_t)wait) * 1e9)};
        if (wait > 0)
            nanosleep(&pause, NULL);
    }
    return really_write(file, data, size);
}
