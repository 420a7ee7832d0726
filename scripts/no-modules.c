/* For `make static`: takes the place of glibc's loader of modules (ld --wrap).
 *
 * A static binary has its own glibc, and would still load the modules that the host's nsswitch.conf names
 * (myhostname, resolve, mdns4). They bring the host's glibc with them, and unless that is the same version, the
 * process dies at the first name that it looks up: SIGFPE on Debian 13, of a binary made on Debian 12. So there are no
 * modules. glibc goes on to what it has built in: /etc/hosts and DNS, as musl would. */

void *__wrap___libc_dlopen_mode(const char *name, int mode)
{
    (void)name;
    (void)mode;
    return 0;
}
