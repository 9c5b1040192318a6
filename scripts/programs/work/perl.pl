# A hash of arrays, sorted, half of it deleted, and a long string that is searched.
use strict;
use warnings;
use Digest::MD5 qw(md5_hex);

my (%h, $s, $n, $c);
$h{"key$_"} = [$_, "v" x ($_ % 50)] for 1 .. 50000;
for my $k (sort keys %h) {
	$n += $h{$k}[0];
	$s .= $k . $h{$k}[1] if $n % 3 == 0;
}
delete $h{"key$_"} for grep { $_ % 2 } 1 .. 50000;
$c += $1 while $s =~ /key(\d+)v/g;
print scalar(keys %h), " $n $c ", md5_hex($s), "\n";
