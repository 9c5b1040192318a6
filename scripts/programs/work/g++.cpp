// What the compiler is given: templates of the standard library.
#include <map>
#include <string>
#include <vector>

template <int N>
struct Node {
	std::map<int, std::vector<std::string>> index;
	Node<N - 1> *next;

	int total() const
	{
		int sum = N;

		for (const auto &entry : index) {
			for (const auto &word : entry.second)
				sum += word.size();
		}
		return sum + (next ? next->total() : 0);
	}
};

template <>
struct Node<0> {
	int total() const { return 0; }
};

int total(const Node<6> &node)
{
	return node.total();
}
