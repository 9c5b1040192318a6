# shellcheck shell=bash
# It waits for its compiler: else how much is interpreted is not the same each time.
exec "${java:?}" -Xmx128m -Xbatch -XX:+UseSerialGC -cp /tmp/java Java
