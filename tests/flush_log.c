/* Notes the size of every file that a server flushes, once it is flushed: loaded before the C library,
   so that a test knows what a power cut would leave. FLUSH_LOG names the file for the notes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(int fd, long long size) {
  char link[64], path[4096], line[4200];
  const char *log_path = getenv("FLUSH_LOG");
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0 || log_path == NULL) return;
  path[length] = 0;
  int log = open(log_path, O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (log < 0) return;
  int count = snprintf(line, sizeof line, "%lld %s\n", size, path);
  if (write(log, line, count) != count) abort();
  close(log);
}

static int flush(int fd, const char *name) {
  struct stat before;
  int is_known = fstat(fd, &before) == 0;
  int (*real)(int) = dlsym(RTLD_NEXT, name);
  int result = real(fd);
  if (result == 0 && is_known) note(fd, (long long)before.st_size);
  return result;
}

int fdatasync(int fd) { return flush(fd, "fdatasync"); }
int fsync(int fd) { return flush(fd, "fsync"); }
