#!/bin/sh
# Installs what is missing, through apt. usage: deps.sh build|net|test|lint ...
# Says what it installs. Without root it prints the one line to run and stops with status 1.
need=""
want() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q "install ok installed" || need="$need $1"; }
program() { command -v "${1%js}" >/dev/null || want "$1"; }   # may also come from elsewhere than apt
library() { pkg-config --exists "$1" 2>/dev/null || want "$2"; }   # any flavour of it will do
for set in "$@"; do
  case $set in
    build) for p in gcc libc6-dev make pkg-config lua5.4 liblua5.4-dev libcjson-dev libpcre2-dev libutf8proc-dev; do want $p; done ;;
    net) library libcurl libcurl4-openssl-dev; library libmicrohttpd libmicrohttpd-dev ;;
    test) for p in lua-busted xz-utils lua-luv lua-copas lua-cqueues; do want $p; done
          for p in chromium nodejs npm; do program $p; done ;;   # the server's and the page's specs
    lint) want lua-check ;;
  esac
done
if ! command -v dpkg-query >/dev/null; then
  echo "fathom needs: a C compiler, Lua 5.4 with headers, cJSON, PCRE2, utf8proc (libcurl and libmicrohttpd for remote and serve; busted, xz for tests)" >&2
  exit 0
fi
[ -z "$need" ] && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "fathom needs these packages; run:" >&2
  echo "  sudo apt-get install -y --no-install-recommends$need" >&2
  exit 1
fi
echo "installing:$need"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y --no-install-recommends $need >/dev/null 2>&1 && exit 0
apt-get update >/dev/null && apt-get install -y --no-install-recommends $need >/dev/null
